// What the files of the x86 instruction sets include before their target pragma. Headers of the language and the
// compiler come first: what they define inline may be shared with other translation units, so it must stay within the
// baseline instruction set.
#pragma once

#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>
#include <numeric>
#include <type_traits>
#include <vector>

#include "isa.h"

// GCC 12 reports its own _mm512_undefined_* operands (GCC bug 105593).
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
