#include "roc_auc.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "common/check.h"

double roc_auc(uintptr_t scores, uintptr_t labels, int64_t n) {
    const float* score = pointer<float>(scores);
    const uint8_t* label = pointer<uint8_t>(labels);
    std::vector<float> side[2];
    for (int64_t i = 0; i < n; ++i) {
        if (std::isnan(score[i]))
            throw std::invalid_argument("roc_auc: score " + std::to_string(i) + " is NaN; expected numbers");
        if (label[i] > 1)
            throw std::invalid_argument("roc_auc: label " + std::to_string(i) + " is " + std::to_string(label[i]) +
                                        "; expected 0 or 1");
        side[label[i]].push_back(score[i]);
    }
    const std::vector<float>&pos = side[1], &neg = side[0];
    if (pos.empty() || neg.empty())
        throw std::invalid_argument("roc_auc: " + std::to_string(pos.size()) + " positives and " +
                                    std::to_string(neg.size()) + " negatives; expected at least one of each");
    std::sort(side[0].begin(), side[0].end());
    int64_t twice = 0;
    for (float p : pos)
        twice += (std::lower_bound(neg.begin(), neg.end(), p) - neg.begin()) +
                 (std::upper_bound(neg.begin(), neg.end(), p) - neg.begin());
    return 0.5 * static_cast<double>(twice) / (static_cast<double>(pos.size()) * static_cast<double>(neg.size()));
}
