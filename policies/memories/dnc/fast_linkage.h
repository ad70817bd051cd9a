/* The linkage of one write head at one step, forward and backward, each in one pass over the linkage.

   L is [rows, lead]: N numbers a row and N rows, both padded with zeros, rows to whole multiples of ROWS. Vectors over
   slots have `lead` numbers, of which those from N on are zero. Symbols as in memory.py, q = w^r_{t-1}. */

#pragma once

#include "packed.h"

#define ROWS 4
#define GROUP 4 /* read heads at once: their sums stay in registers */
#define GET(p) (*(const Wide *)(p))
#define PUT(p) (*(Wide *)(p))

INLINE REAL sum_of(Wide v) {
    REAL parts[WIDE_BYTES / sizeof(REAL)], sum = 0;
    memcpy(parts, &v, sizeof v);
    for (int k = 0; k < WIDE; k++) sum += parts[k];
    return sum;
}

/* Σ_k a[k] b[k] */
INLINE REAL dot(const REAL *a, const REAL *b, int64_t n) {
    Wide sum = {0};
    for (int64_t k = 0; k < n; k += WIDE) sum += GET(a + k) * GET(b + k);
    return sum_of(sum);
}

typedef struct {
    const REAL *before;         /* L_{t-1} */
    REAL *after;                /* L_t, or when going back the gradient of L_t, which becomes that of L_{t-1} */
    int64_t lead, rows;
    const REAL *w, *p;          /* w^w_t, p_{t-1} */
    const REAL *reads;          /* q of each read head */
    REAL *to, *from;            /* forward: L_t q and L_t' q; back: L_t x and L_t' x */
    const REAL *x, *ahead, *behind; /* back: gradient of w^r_t; π_f q; π_b x */
    REAL *d_w, *d_p, *moved;    /* back; moved: Σ_i dL_t[i, j] L_{t-1}[i, j] */
} Links;

/* Rows i ... i + ROWS - 1, columns j ... end - 1, of heads h ... h + heads - 1. `first`: L_t is not there yet. */
INLINE void follow_span(
    const Links *links, int64_t i, int64_t j, int64_t end, int64_t h, Wide (*sums)[ROWS], const int heads,
    const int first, const int diagonal) {
    const int64_t n = links->lead;
    REAL *rows = links->after + i * n;
    const REAL *w = links->w + i, *before = (first ? links->before : links->after) + i * n;
    for (; j < end; j += WIDE) {
        Wide l[ROWS];
        for (int r = 0; r < ROWS; r++) {
            l[r] = GET(before + r * n + j);
            if (!first) continue;
            __builtin_prefetch(before + (ROWS + r) * n + j, 1, 2);
            l[r] = ((1 - w[r]) - GET(links->w + j)) * l[r] + w[r] * GET(links->p + j);
            PUT(rows + r * n + j) = l[r];
            if (!diagonal) continue;
            rows[r * n + i + r] = 0;
            l[r] = GET(rows + r * n + j);
        }
        for (int k = 0; k < heads; k++) {
            const REAL *q = links->reads + (h + k) * n;
            Wide from = GET(links->from + (h + k) * n + j), of = GET(q + j);
            for (int r = 0; r < ROWS; r++) from += q[i + r] * l[r], sums[k][r] += of * l[r];
            PUT(links->from + (h + k) * n + j) = from;
        }
    }
}

INLINE void follow_rows(const Links *links, int64_t i, int64_t h, const int heads, const int first) {
    const int64_t at = i / WIDE * WIDE;
    Wide sums[GROUP][ROWS];
    for (int k = 0; k < heads; k++)
        for (int r = 0; r < ROWS; r++) sums[k][r] = (Wide){0};
    follow_span(links, i, 0, at, h, sums, heads, first, 0);
    follow_span(links, i, at, at + WIDE, h, sums, heads, first, first);
    follow_span(links, i, at + WIDE, links->lead, h, sums, heads, first, 0);
    for (int k = 0; k < heads; k++)
        for (int r = 0; r < ROWS; r++) links->to[(h + k) * links->lead + i + r] = sum_of(sums[k][r]);
}

/* L_t, and what it leads to from what was read. */
static void follow(const Links *links, int64_t heads) {
    memset(links->to, 0, sizeof(REAL) * heads * links->lead);
    memset(links->from, 0, sizeof(REAL) * heads * links->lead);
    for (int64_t i = 0; i < links->rows; i += ROWS) {
        int64_t h = 0;
#define TAKE(count)                                      \
    for (; h + count <= heads; h += count)               \
        if (h == 0)                                      \
            follow_rows(links, i, h, count, 1);          \
        else                                             \
            follow_rows(links, i, h, count, 0)
        TAKE(4);
        TAKE(2);
        TAKE(1);
#undef TAKE
    }
}

/* Rows i ... i + ROWS - 1 of L_t alone. */
static void advance(
    const REAL *before, REAL *after, const REAL *w, const REAL *p, int64_t i, int64_t n) {
    for (int64_t r = i; r < i + ROWS; r++) {
        for (int64_t j = 0; j < n; j += WIDE)
            PUT(after + r * n + j) = ((1 - w[r]) - GET(w + j)) * GET(before + r * n + j) + w[r] * GET(p + j);
        after[r * n + r] = 0;
    }
}

/* As `follow_span`, back. `last`: of the heads, after which the gradient goes to L_{t-1}. */
INLINE void back_span(
    const Links *links, int64_t i, int64_t j, int64_t end, int64_t h, Wide (*sums)[ROWS], Wide *of_w, const int heads,
    const int last, const int diagonal) {
    const int first = h == 0;
    const int64_t n = links->lead;
    REAL *rows = links->after + i * n;
    const REAL *w = links->w + i, *before = links->before + i * n;
    REAL off[ROWS][WIDE_BYTES / sizeof(REAL)];
    for (int r = 0; r < ROWS && diagonal; r++)
        for (int k = 0; k < WIDE; k++) off[r][k] = i + r != j + k;
    for (; j < end; j += WIDE) {
        Wide l[ROWS], d[ROWS];
        for (int r = 0; r < ROWS; r++) {
            l[r] = ((1 - w[r]) - GET(links->w + j)) * GET(before + r * n + j) + w[r] * GET(links->p + j);
            if (diagonal) l[r] *= GET(off[r]);
            d[r] = GET(rows + r * n + j);
            if (first) __builtin_prefetch(before + (ROWS + r) * n + j, 0, 2);
            if (first) __builtin_prefetch(rows + (ROWS + r) * n + j, 1, 2);
        }
        for (int k = 0; k < heads; k++) {
            const int64_t of = (h + k) * n;
            const Wide x = GET(links->x + of + j), ahead = GET(links->ahead + of + j), behind = GET(links->behind + of + j);
            Wide from = GET(links->from + of + j);
            for (int r = 0; r < ROWS; r++) {
                from += links->x[of + i + r] * l[r];
                sums[k][r] += x * l[r];
                d[r] += links->x[of + i + r] * ahead + links->reads[of + i + r] * behind;
            }
            PUT(links->from + of + j) = from;
        }
        if (!last) {
            for (int r = 0; r < ROWS; r++) PUT(rows + r * n + j) = d[r];
            continue;
        }
        Wide moved = GET(links->moved + j), d_p = GET(links->d_p + j);
        for (int r = 0; r < ROWS; r++) {
            if (diagonal) d[r] *= GET(off[r]);
            const Wide both = d[r] * GET(before + r * n + j);
            moved += both;
            of_w[r] += d[r] * GET(links->p + j) - both;
            d_p += w[r] * d[r];
            PUT(rows + r * n + j) = d[r] * ((1 - w[r]) - GET(links->w + j));
        }
        PUT(links->moved + j) = moved;
        PUT(links->d_p + j) = d_p;
    }
}

INLINE void back_rows(const Links *links, int64_t i, int64_t h, const int heads, const int last) {
    const int64_t at = i / WIDE * WIDE;
    Wide sums[GROUP][ROWS], of_w[ROWS];
    for (int r = 0; r < ROWS; r++) of_w[r] = (Wide){0};
    for (int k = 0; k < heads; k++)
        for (int r = 0; r < ROWS; r++) sums[k][r] = (Wide){0};
    back_span(links, i, 0, at, h, sums, of_w, heads, last, 0);
    back_span(links, i, at, at + WIDE, h, sums, of_w, heads, last, 1);
    back_span(links, i, at + WIDE, links->lead, h, sums, of_w, heads, last, 0);
    for (int k = 0; k < heads; k++)
        for (int r = 0; r < ROWS; r++) links->to[(h + k) * links->lead + i + r] = sum_of(sums[k][r]);
    for (int r = 0; r < ROWS && last; r++) links->d_w[i + r] = sum_of(of_w[r]);
}

/* Backward pass of `follow` and of the update: fills `to`, `from` and `d_w`, adds to `d_p`. */
static void follow_back(const Links *links, int64_t heads) {
    const int64_t n = links->lead;
    memset(links->to, 0, sizeof(REAL) * heads * n);
    memset(links->from, 0, sizeof(REAL) * heads * n);
    memset(links->d_w, 0, sizeof(REAL) * n);
    memset(links->moved, 0, sizeof(REAL) * n);
    for (int64_t i = 0; i < links->rows; i += ROWS) {
        int64_t h = 0;
#define TAKE(count)                                      \
    for (; h + count <= heads; h += count)               \
        if (h + count == heads)                          \
            back_rows(links, i, h, count, 1);            \
        else                                             \
            back_rows(links, i, h, count, 0)
        TAKE(4);
        TAKE(2);
        TAKE(1);
#undef TAKE
    }
    for (int64_t j = 0; j < n; j++) links->d_w[j] -= links->moved[j];
}
