/* The linkages of a DNC at one step, forward and back, in one pass over each; see fast_links.py.

   L is [N, N], its rows `lead` apart and the entries N * lead; with k = 0 where an episode starts and else 1,
   rows = k (1 - w) and columns = k w, all [G, N]; reads w^r and the two ways f and b are [G, R, N]. */

#include "products.h"

/* Row i of L_t from that of L_{t-1} */
static inline void update(
    const REAL *before, REAL *after, const REAL *restrict columns, const REAL *restrict p, REAL row, REAL w, int64_t i,
    int64_t n) {
    for (int64_t j = 0; j < n; j++) after[j] = (row - columns[j]) * before[j] + w * p[j];
    after[i] = 0;
}

/* L_t from L_{t-1} */
void NAME(advance)(
    const REAL *before, REAL *after, const REAL *rows, const REAL *columns, const REAL *w, const REAL *p, int64_t n,
    int64_t lead, int64_t begin, int64_t end) {
    for (int64_t g = begin; g < end; g++)
        for (int64_t i = 0; i < n; i++) {
            const int64_t at = (g * n + i) * lead, of = g * n + i;
            update(before + at, after + at, columns + g * n, p + g * n, rows[of], w[of], i, n);
        }
}

/* The same in place; f = L_t w^r and b = L_t' w^r */
void NAME(follow)(
    REAL *linkage, const REAL *rows, const REAL *columns, const REAL *w, const REAL *p, const REAL *reads, REAL *f,
    REAL *b, int64_t heads, int64_t n, int64_t lead, int64_t begin, int64_t end) {
    for (int64_t g = begin; g < end; g++) {
        const REAL *read = reads + g * heads * n;
        REAL *to = f + g * heads * n, *from = b + g * heads * n;
        memset(from, 0, sizeof(REAL) * heads * n);
        for (int64_t first = 0; first < n; first += ROWS) {
            REAL *links = linkage + (g * n + first) * lead;
            const int64_t here = n - first < ROWS ? n - first : ROWS;
            for (int64_t r = 0; r < here; r++) {
                const int64_t of = g * n + first + r;
                REAL *row = links + r * lead;
                update(row, row, columns + g * n, p + g * n, rows[of], w[of], first + r, n);
            }
            if (here == ROWS) {
                dots(read, heads, links, lead, n, to + first, n);
                gather(from, read + first, n, links, lead, heads, n);
                continue;
            }
            for (int64_t r = 0; r < here; r++)
                for (int64_t h = 0; h < heads; h++) {
                    to[h * n + first + r] = dot(read + h * n, links + r * lead, n);
                    axpy(from + h * n, read[h * n + first + r], links + r * lead, n);
                }
        }
    }
}

/* From those of f and b, and of L_t in `d`, which becomes that of L_{t-1}: d_w, d_p [G, N] and d_reads [G, R, N].
   `before` is L_{t-1}; `spare` has room for 5 N numbers for each entry. */
void NAME(back)(
    const REAL *before, REAL *d, const REAL *rows, const REAL *columns, const REAL *w, const REAL *p, const REAL *reads,
    const REAL *d_f, const REAL *d_b, REAL *d_w, REAL *d_p, REAL *d_reads, REAL *spare, int64_t heads, int64_t n,
    int64_t lead, int64_t begin, int64_t end) {
    for (int64_t g = begin; g < end; g++) {
        const int64_t vectors = g * heads * n;
        const REAL *read = reads + vectors, *to = d_f + vectors, *from = d_b + vectors;
        const REAL *restrict column = columns + g * n, *restrict precedence = p + g * n;
        REAL *d_read = d_reads + vectors, *restrict d_before = d_p + g * n;
        REAL *after = spare + 5 * g * n, *restrict moved = after + ROWS * n; /* Σ_i dL_t[i, j] L_{t-1}[i, j] */
        memset(d_read, 0, sizeof(REAL) * heads * n);
        memset(d_before, 0, sizeof(REAL) * n);
        memset(moved, 0, sizeof(REAL) * n);
        for (int64_t first = 0; first < n; first += ROWS) {
            const int64_t here = n - first < ROWS ? n - first : ROWS, at = (g * n + first) * lead;
            for (int64_t r = 0; r < here; r++) {
                const int64_t of = g * n + first + r;
                update(before + at + r * lead, after + r * n, column, precedence, rows[of], w[of], first + r, n);
            }
            /* f and b */
            if (here == ROWS) {
                gather(d_read, to + first, n, after, n, heads, n);
                spread(d + at, lead, to + first, n, read, heads, n);
                spread(d + at, lead, read + first, n, from, heads, n);
            }
            for (int64_t r = 0; r < here; r++)
                for (int64_t h = 0; h < heads; h++) {
                    if (here < ROWS) {
                        axpy(d_read + h * n, to[h * n + first + r], after + r * n, n);
                        axpy(d + at + r * lead, to[h * n + first + r], read + h * n, n);
                        axpy(d + at + r * lead, read[h * n + first + r], from + h * n, n);
                    }
                    d_read[h * n + first + r] += dot(from + h * n, after + r * n, n);
                }
            /* L_t = (k (1 - w) - k w') L_{t-1} + w p' */
            for (int64_t r = 0; r < here; r++) {
                const REAL *restrict old = before + at + r * lead;
                REAL *restrict d_row = d + at + r * lead, of_row = 0, of_w = 0;
                const REAL row = rows[g * n + first + r], weight = w[g * n + first + r];
                d_row[first + r] = 0;
                for (int64_t j = 0; j < n; j++) {
                    const REAL both = d_row[j] * old[j];
                    of_row += both;
                    moved[j] += both;
                    of_w += d_row[j] * precedence[j];
                    d_before[j] += weight * d_row[j];
                    d_row[j] *= row - column[j];
                }
                d_w[g * n + first + r] = of_w - of_row * (row + column[first + r]);
            }
        }
        for (int64_t j = 0; j < n; j++) d_w[g * n + j] -= moved[j] * (rows[g * n + j] + column[j]);
    }
}
