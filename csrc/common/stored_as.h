// How the tensors of a list are stored. The numbers are the places in ops/checks.py, FLOATS.
#pragma once

enum StoredAs : int { kFloat32 = 0, kBFloat16 = 1, kFloat16 = 2 };
