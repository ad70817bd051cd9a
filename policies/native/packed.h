/* Products of rows with a matrix that is constant over many steps and packed once; REAL is float or double.

   A tile of rows × PANEL columns stays in registers during the loop over the inner dimension: each element of the matrix
   is loaded once for all rows of the tile, and the matrix is read sequentially. */

#pragma once

#include <stdint.h>
#include <string.h>

#ifdef __AVX512F__
#define WIDE_BYTES 64
#define TILE 8
#else
#define WIDE_BYTES 32
#define TILE 4
#endif
typedef REAL Wide __attribute__((vector_size(WIDE_BYTES), aligned(sizeof(REAL)), may_alias));
#define WIDE ((int64_t)(WIDE_BYTES / sizeof(REAL)))
#define PANEL (2 * WIDE)
#define INLINE static inline __attribute__((always_inline))

/* Stores the matrix [inner, columns], whose element (k, j) is weights[k * row_stride + j * column_stride], as consecutive
   panels [inner, PANEL]; the last panel is padded with zeros. */
void NAME(pack)(
    const REAL *weights, int64_t inner, int64_t columns, int64_t row_stride, int64_t column_stride,
    REAL *restrict packed) {
    for (int64_t j = 0; j < columns; j += PANEL, packed += inner * PANEL) {
        const int64_t valid_columns = columns - j < PANEL ? columns - j : PANEL;
        if (valid_columns < PANEL) memset(packed, 0, sizeof(REAL) * inner * PANEL);
        if (column_stride == 1)
            for (int64_t k = 0; k < inner; k++)
                memcpy(packed + k * PANEL, weights + k * row_stride + j, sizeof(REAL) * valid_columns);
        else
            for (int64_t first = 0; first < inner; first += WIDE) {
                const int64_t last = first + WIDE < inner ? first + WIDE : inner;
                for (int64_t c = 0; c < valid_columns; c++)
                    for (int64_t k = first; k < last; k++)
                        packed[k * PANEL + c] = weights[k * row_stride + (j + c) * column_stride];
            }
    }
}

INLINE void tile(const REAL *const *rows, const REAL *panel, int64_t inner, REAL *const *out, const int count) {
    Wide sums[TILE][2];
    for (int r = 0; r < count; r++)
        for (int c = 0; c < 2; c++) sums[r][c] = *(const Wide *)(out[r] + c * WIDE);
    for (int64_t k = 0; k < inner; k++, panel += PANEL) {
        const Wide left = *(const Wide *)panel, right = *(const Wide *)(panel + WIDE);
        for (int r = 0; r < count; r++) {
            const Wide x = rows[r][k] - (Wide){0};
            sums[r][0] += x * left, sums[r][1] += x * right;
        }
    }
    for (int r = 0; r < count; r++)
        for (int c = 0; c < 2; c++) *(Wide *)(out[r] + c * WIDE) = sums[r][c];
}

/* out += x · the packed matrix. The rows of x [count, inner] have stride `x_stride`, those of out [count, columns]
   stride `out_stride`. */
static void product(
    const REAL *x, int64_t x_stride, int64_t count, const REAL *packed, int64_t inner, int64_t columns, REAL *out,
    int64_t out_stride) {
    for (int64_t j = 0; j < columns; j += PANEL, packed += inner * PANEL) {
        const int64_t valid_columns = columns - j < PANEL ? columns - j : PANEL;
        for (int64_t b = 0; b < count; b += TILE) {
            REAL edge[TILE][PANEL], *tile_out[TILE];
            const REAL *tile_x[TILE];
            const int64_t valid_rows = count - b < TILE ? count - b : TILE;
            for (int64_t r = 0; r < TILE; r++) {
                const int in_range = r < valid_rows;
                tile_x[r] = x + (b + (in_range ? r : 0)) * x_stride;
                tile_out[r] = out + (b + (in_range ? r : 0)) * out_stride + j;
                if (in_range && valid_columns == PANEL) continue;
                memcpy(edge[r], tile_out[r], sizeof(REAL) * valid_columns);
                tile_out[r] = edge[r];
            }
            if (2 * valid_rows > TILE)
                tile(tile_x, packed, inner, tile_out, TILE);
            else
                tile(tile_x, packed, inner, tile_out, TILE / 2);
            for (int64_t r = 0; valid_columns < PANEL && r < valid_rows; r++)
                memcpy(out + (b + r) * out_stride + j, edge[r], sizeof(REAL) * valid_columns);
        }
    }
}
