/* LSTM and GRU over time for few rows, forward and back; see recurrent_native.py.

   Arrays are [T, B, ...] and whole; gates are in torch's order i, f, g, o. `starts` is [T, B] or NULL: where it is not 0
   the state is 0 before the step. */

#include "activations.h"
#include "products.h"

/* `gates` holds what the input gives and becomes the gates; `hiddens` and `cells` are [T + 1, B, H] with the state before
   the first step, which is set to 0 where that is a start; `squashed` becomes tanh of the cells after each step. `room` is
   [B, 6 H]. */
void NAME(lstm_forward)(
    REAL *gates, const REAL *weights, REAL *hiddens, REAL *cells, REAL *squashed, const uint8_t *starts, REAL *room,
    int64_t steps, int64_t batch, int64_t size) {
    const int64_t width = 4 * size;
    REAL *sums = room, *before = sums + batch * width, *old = before + batch * size;
    for (int64_t t = 0; t < steps; t++) {
        const uint8_t *fresh = starts ? starts + t * batch : 0;
        REAL *h = hiddens + t * batch * size, *c = cells + t * batch * size;
        memcpy(before, h, sizeof(REAL) * batch * size);
        memcpy(old, c, sizeof(REAL) * batch * size);
        for (int64_t b = 0; fresh && b < batch; b++)
            if (fresh[b]) {
                memset(before + b * size, 0, sizeof(REAL) * size);
                memset(old + b * size, 0, sizeof(REAL) * size);
            }
        if (t == 0) {
            memcpy(h, before, sizeof(REAL) * batch * size);
            memcpy(c, old, sizeof(REAL) * batch * size);
        }
        for (int64_t r = 0; r < width; r += ROWS) dots(before, batch, weights + r * size, size, size, sums + r, width);
        for (int64_t b = 0; b < batch; b++) {
            REAL *restrict i = gates + (t * batch + b) * width, *restrict f = i + size, *restrict g = f + size;
            REAL *restrict o = g + size, *restrict after = c + (batch + b) * size, *restrict out = h + (batch + b) * size;
            REAL *restrict s = squashed + (t * batch + b) * size;
            const REAL *restrict add = sums + b * width, *restrict was = old + b * size;
            for (int64_t k = 0; k < width; k++) i[k] += add[k];
            sigmoid(i, 2 * size);
            squash(g, size);
            sigmoid(o, size);
            for (int64_t k = 0; k < size; k++) s[k] = after[k] = f[k] * was[k] + i[k] * g[k];
            squash(s, size);
            for (int64_t k = 0; k < size; k++) out[k] = o[k] * s[k];
        }
    }
}

/* `d_hiddens` and `d_cells`, [T, B, H] or NULL, are what the states after each step are given; `d_hidden` and `d_cell`
   [B, H] become the gradients of the state before the first step, `d_gates` those of the sums that entered the gates. */
void NAME(lstm_backward)(
    const REAL *gates, const REAL *weights, const REAL *cells, const REAL *squashed, const uint8_t *starts,
    const REAL *d_hiddens, const REAL *d_cells, REAL *d_gates, REAL *d_hidden, REAL *d_cell, int64_t steps, int64_t batch,
    int64_t size) {
    const int64_t width = 4 * size, state = batch * size;
    memset(d_hidden, 0, sizeof(REAL) * state);
    memset(d_cell, 0, sizeof(REAL) * state);
    for (int64_t t = steps - 1; t >= 0; t--) {
        const uint8_t *fresh = starts ? starts + t * batch : 0;
        for (int64_t k = 0; d_hiddens && k < state; k++) d_hidden[k] += d_hiddens[t * state + k];
        for (int64_t k = 0; d_cells && k < state; k++) d_cell[k] += d_cells[t * state + k];
        for (int64_t b = 0; b < batch; b++) {
            const REAL *restrict i = gates + (t * batch + b) * width, *restrict f = i + size, *restrict g = f + size;
            const REAL *restrict o = g + size, *restrict s = squashed + (t * batch + b) * size;
            const REAL *restrict was = cells + (t * batch + b) * size, *restrict dh = d_hidden + b * size;
            REAL *restrict di = d_gates + (t * batch + b) * width, *restrict df = di + size, *restrict dg = df + size;
            REAL *restrict d_o = dg + size, *restrict dc = d_cell + b * size;
            const REAL keep = fresh && fresh[b] ? 0 : 1;
            for (int64_t k = 0; k < size; k++) {
                const REAL total = dc[k] + dh[k] * o[k] * (1 - s[k] * s[k]);
                di[k] = total * g[k] * i[k] * (1 - i[k]);
                df[k] = keep * total * was[k] * f[k] * (1 - f[k]);
                dg[k] = total * i[k] * (1 - g[k] * g[k]);
                d_o[k] = dh[k] * s[k] * o[k] * (1 - o[k]);
                dc[k] = keep * total * f[k];
            }
        }
        memset(d_hidden, 0, sizeof(REAL) * state);
        const REAL *factors = d_gates + t * batch * width;
        for (int64_t r = 0; r < width; r += ROWS) gather(d_hidden, factors + r, width, weights + r * size, size, batch, size);
        for (int64_t b = 0; fresh && b < batch; b++)
            if (fresh[b]) memset(d_hidden + b * size, 0, sizeof(REAL) * size);
    }
}

/* Of a GRU, r, z, n. `gates` as above; `of_hidden` [T, B, H] becomes what the hidden state gives n, its bias included.
   `room` is [B, 4 H]. */
void NAME(gru_forward)(
    REAL *gates, const REAL *weights, const REAL *bias, REAL *hiddens, REAL *of_hidden, const uint8_t *starts, REAL *room,
    int64_t steps, int64_t batch, int64_t size) {
    const int64_t width = 3 * size;
    REAL *sums = room, *before = sums + batch * width;
    for (int64_t t = 0; t < steps; t++) {
        const uint8_t *fresh = starts ? starts + t * batch : 0;
        REAL *h = hiddens + t * batch * size;
        memcpy(before, h, sizeof(REAL) * batch * size);
        for (int64_t b = 0; fresh && b < batch; b++)
            if (fresh[b]) memset(before + b * size, 0, sizeof(REAL) * size);
        if (t == 0) memcpy(h, before, sizeof(REAL) * batch * size);
        int64_t r = 0;
        for (; r + ROWS <= width; r += ROWS) dots(before, batch, weights + r * size, size, size, sums + r, width);
        for (; r < width; r++)
            for (int64_t b = 0; b < batch; b++) sums[b * width + r] = dot(before + b * size, weights + r * size, size);
        for (int64_t b = 0; b < batch; b++) {
            REAL *restrict reset = gates + (t * batch + b) * width, *restrict z = reset + size, *restrict n = z + size;
            REAL *restrict given = of_hidden + (t * batch + b) * size, *restrict out = h + (batch + b) * size;
            const REAL *restrict add = sums + b * width, *restrict was = before + b * size;
            for (int64_t k = 0; k < 2 * size; k++) reset[k] += add[k];
            sigmoid(reset, 2 * size);
            for (int64_t k = 0; k < size; k++) given[k] = add[2 * size + k] + bias[k];
            for (int64_t k = 0; k < size; k++) n[k] += reset[k] * given[k];
            squash(n, size);
            for (int64_t k = 0; k < size; k++) out[k] = n[k] + z[k] * (was[k] - n[k]);
        }
    }
}

/* `d_gates` are those of what the hidden state gives the gates, `d_n` [T, B, H] those of the input's part of n. */
void NAME(gru_backward)(
    const REAL *gates, const REAL *weights, const REAL *hiddens, const REAL *of_hidden, const uint8_t *starts,
    const REAL *d_hiddens, REAL *d_gates, REAL *d_n, REAL *d_hidden, int64_t steps, int64_t batch, int64_t size) {
    const int64_t width = 3 * size, state = batch * size;
    memset(d_hidden, 0, sizeof(REAL) * state);
    for (int64_t t = steps - 1; t >= 0; t--) {
        const uint8_t *fresh = starts ? starts + t * batch : 0;
        for (int64_t k = 0; d_hiddens && k < state; k++) d_hidden[k] += d_hiddens[t * state + k];
        for (int64_t b = 0; b < batch; b++) {
            const REAL *restrict reset = gates + (t * batch + b) * width, *restrict z = reset + size;
            const REAL *restrict n = z + size, *restrict given = of_hidden + (t * batch + b) * size;
            const REAL *restrict was = hiddens + (t * batch + b) * size;
            REAL *restrict d_r = d_gates + (t * batch + b) * width, *restrict d_z = d_r + size, *restrict d_h = d_z + size;
            REAL *restrict d_x = d_n + (t * batch + b) * size, *restrict dh = d_hidden + b * size;
            const REAL keep = fresh && fresh[b] ? 0 : 1;
            for (int64_t k = 0; k < size; k++) {
                d_x[k] = dh[k] * (1 - z[k]) * (1 - n[k] * n[k]);
                d_h[k] = d_x[k] * reset[k];
                d_r[k] = d_h[k] * given[k] * (1 - reset[k]);
                d_z[k] = dh[k] * (keep * was[k] - n[k]) * z[k] * (1 - z[k]);
                dh[k] *= z[k];
            }
        }
        const REAL *factors = d_gates + t * batch * width;
        int64_t r = 0;
        for (; r + ROWS <= width; r += ROWS) gather(d_hidden, factors + r, width, weights + r * size, size, batch, size);
        for (; r < width; r++)
            for (int64_t b = 0; b < batch; b++) axpy(d_hidden + b * size, factors[b * width + r], weights + r * size, size);
        for (int64_t b = 0; fresh && b < batch; b++)
            if (fresh[b]) memset(d_hidden + b * size, 0, sizeof(REAL) * size);
    }
}
