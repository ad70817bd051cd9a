/* Flushes denormal numbers to zero: values that decay over many steps become denormal, and an operation on them is
   about a hundred times slower. */

#pragma once

#ifdef __SSE__
#include <xmmintrin.h>
#endif

static inline unsigned flush_denormals(void) {
#ifdef __SSE__
    const unsigned before = _mm_getcsr();
    _mm_setcsr(before | 0x8040);
    return before;
#else
    return 0;
#endif
}

static inline void restore_flags(unsigned before) {
#ifdef __SSE__
    _mm_setcsr(before);
#endif
}
