// program conversions < floats > answers, or program warps, which ends with 1 where something is wrong.
#include <cstring>

void convert();
void check_warps();

int main(int count, char** arguments) {
    if (count != 2) return 2;
    std::strcmp(arguments[1], "conversions") ? check_warps() : convert();
    return 0;
}
