/* The linkage of one write head at one step, forward and backward, each in one pass over the linkage.

   L is [rows, lead]: N x N, padded with zeros; `rows` is a multiple of ROWS. Vectors over slots have `lead` elements;
   those from N on are zero. Symbols as in memory.py, q = w^r_{t-1}. */

#pragma once

#include "packed.h"

#define ROWS 4
#define GROUP 4 /* maximum number of read heads processed together, so that their sums stay in registers */
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
    const REAL *before; /* L_{t-1} */
    REAL *after;        /* L_t; backward: the gradient of L_t, overwritten by that of L_{t-1} */
    int64_t lead, rows;
    const REAL *w, *p;                      /* w^w_t, p_{t-1} */
    const REAL *q;                          /* q of each read head */
    REAL *l_x, *lt_x;                       /* L_t x and L_t' x; forward: x = q */
    const REAL *x, *forward_q, *backward_x; /* backward only: gradient of w^r_t; π_f q; π_b x */
    REAL *d_w, *d_p, *column_sums;          /* backward only; column_sums: Σ_i dL_t[i, j] L_{t-1}[i, j] */
} Links;

/* Rows i ... i + ROWS - 1, columns j ... end - 1, of heads h ... h + heads - 1. `first`: L_t is computed now. */
INLINE void links_span(
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
            const REAL *q = links->q + (h + k) * n;
            Wide lt_x = GET(links->lt_x + (h + k) * n + j), q_j = GET(q + j);
            for (int r = 0; r < ROWS; r++) lt_x += q[i + r] * l[r], sums[k][r] += q_j * l[r];
            PUT(links->lt_x + (h + k) * n + j) = lt_x;
        }
    }
}

INLINE void links_rows(const Links *links, int64_t i, int64_t h, const int heads, const int first) {
    const int64_t at = i / WIDE * WIDE;
    Wide sums[GROUP][ROWS];
    for (int k = 0; k < heads; k++)
        for (int r = 0; r < ROWS; r++) sums[k][r] = (Wide){0};
    links_span(links, i, 0, at, h, sums, heads, first, 0);
    links_span(links, i, at, at + WIDE, h, sums, heads, first, first);
    links_span(links, i, at + WIDE, links->lead, h, sums, heads, first, 0);
    for (int k = 0; k < heads; k++)
        for (int r = 0; r < ROWS; r++) links->l_x[(h + k) * links->lead + i + r] = sum_of(sums[k][r]);
}

/* Computes L_t, L_t q and L_t' q. */
static void update_and_follow_links(const Links *links, int64_t heads) {
    memset(links->l_x, 0, sizeof(REAL) * heads * links->lead);
    memset(links->lt_x, 0, sizeof(REAL) * heads * links->lead);
    for (int64_t i = 0; i < links->rows; i += ROWS) {
        int64_t h = 0;
#define TAKE(count) \
    for (; h + count <= heads; h += count) \
        if (h == 0) \
            links_rows(links, i, h, count, 1); \
        else \
            links_rows(links, i, h, count, 0)
        TAKE(4);
        TAKE(2);
        TAKE(1);
#undef TAKE
    }
}

/* Computes only the rows i ... i + ROWS - 1 of L_t. */
static void update_linkage_rows(const REAL *before, REAL *after, const REAL *w, const REAL *p, int64_t i, int64_t n) {
    for (int64_t r = i; r < i + ROWS; r++) {
        for (int64_t j = 0; j < n; j += WIDE)
            PUT(after + r * n + j) = ((1 - w[r]) - GET(w + j)) * GET(before + r * n + j) + w[r] * GET(p + j);
        after[r * n + r] = 0;
    }
}

/* The backward pass of `links_span`. `last`: after these heads the gradient of L_t becomes that of L_{t-1}. */
INLINE void links_backward_span(
    const Links *links, int64_t i, int64_t j, int64_t end, int64_t h, Wide (*sums)[ROWS], Wide *row_sums,
    const int heads, const int last, const int diagonal) {
    const int first = h == 0;
    const int64_t n = links->lead;
    REAL *rows = links->after + i * n;
    const REAL *w = links->w + i, *before = links->before + i * n;
    REAL off_diagonal[ROWS][WIDE_BYTES / sizeof(REAL)];
    for (int r = 0; r < ROWS && diagonal; r++)
        for (int k = 0; k < WIDE; k++) off_diagonal[r][k] = i + r != j + k;
    for (; j < end; j += WIDE) {
        Wide l[ROWS], d[ROWS];
        for (int r = 0; r < ROWS; r++) {
            l[r] = ((1 - w[r]) - GET(links->w + j)) * GET(before + r * n + j) + w[r] * GET(links->p + j);
            if (diagonal) l[r] *= GET(off_diagonal[r]);
            d[r] = GET(rows + r * n + j);
            if (first) __builtin_prefetch(before + (ROWS + r) * n + j, 0, 2);
            if (first) __builtin_prefetch(rows + (ROWS + r) * n + j, 1, 2);
        }
        for (int k = 0; k < heads; k++) {
            const int64_t offset = (h + k) * n;
            const Wide x = GET(links->x + offset + j), forward_q = GET(links->forward_q + offset + j),
                       backward_x = GET(links->backward_x + offset + j);
            Wide lt_x = GET(links->lt_x + offset + j);
            for (int r = 0; r < ROWS; r++) {
                lt_x += links->x[offset + i + r] * l[r];
                sums[k][r] += x * l[r];
                d[r] += links->x[offset + i + r] * forward_q + links->q[offset + i + r] * backward_x;
            }
            PUT(links->lt_x + offset + j) = lt_x;
        }
        if (!last) {
            for (int r = 0; r < ROWS; r++) PUT(rows + r * n + j) = d[r];
            continue;
        }
        Wide column_sums = GET(links->column_sums + j), d_p = GET(links->d_p + j);
        for (int r = 0; r < ROWS; r++) {
            if (diagonal) d[r] *= GET(off_diagonal[r]);
            const Wide product = d[r] * GET(before + r * n + j);
            column_sums += product;
            row_sums[r] += d[r] * GET(links->p + j) - product;
            d_p += w[r] * d[r];
            PUT(rows + r * n + j) = d[r] * ((1 - w[r]) - GET(links->w + j));
        }
        PUT(links->column_sums + j) = column_sums;
        PUT(links->d_p + j) = d_p;
    }
}

INLINE void links_backward_rows(const Links *links, int64_t i, int64_t h, const int heads, const int last) {
    const int64_t at = i / WIDE * WIDE;
    Wide sums[GROUP][ROWS], row_sums[ROWS];
    for (int r = 0; r < ROWS; r++) row_sums[r] = (Wide){0};
    for (int k = 0; k < heads; k++)
        for (int r = 0; r < ROWS; r++) sums[k][r] = (Wide){0};
    links_backward_span(links, i, 0, at, h, sums, row_sums, heads, last, 0);
    links_backward_span(links, i, at, at + WIDE, h, sums, row_sums, heads, last, 1);
    links_backward_span(links, i, at + WIDE, links->lead, h, sums, row_sums, heads, last, 0);
    for (int k = 0; k < heads; k++)
        for (int r = 0; r < ROWS; r++) links->l_x[(h + k) * links->lead + i + r] = sum_of(sums[k][r]);
    for (int r = 0; r < ROWS && last; r++) links->d_w[i + r] = sum_of(row_sums[r]);
}

/* The backward pass of `update_and_follow_links`: computes L_t x, L_t' x and d_w; adds to d_p. */
static void update_and_follow_links_backward(const Links *links, int64_t heads) {
    const int64_t n = links->lead;
    memset(links->l_x, 0, sizeof(REAL) * heads * n);
    memset(links->lt_x, 0, sizeof(REAL) * heads * n);
    memset(links->d_w, 0, sizeof(REAL) * n);
    memset(links->column_sums, 0, sizeof(REAL) * n);
    for (int64_t i = 0; i < links->rows; i += ROWS) {
        int64_t h = 0;
#define TAKE(count) \
    for (; h + count <= heads; h += count) \
        if (h + count == heads) \
            links_backward_rows(links, i, h, count, 1); \
        else \
            links_backward_rows(links, i, h, count, 0)
        TAKE(4);
        TAKE(2);
        TAKE(1);
#undef TAKE
    }
    for (int64_t j = 0; j < n; j++) links->d_w[j] -= links->column_sums[j];
}
