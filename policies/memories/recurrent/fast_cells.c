/* LSTM and GRU over time, forward and backward; see fast_native.py.

   Arrays are [T, B, ...] and whole; gates are in torch's order i, f, g, o. `starts` is [T, B] or NULL: where it is not
   0 the state is 0 before the step. */

#include "activations.h"
#include "packed.h"

/* The state before a step, [B, H]: `state`, or a copy of it in `scratch` that is 0 where `fresh` is not. */
static const REAL *after_reset(const REAL *state, const uint8_t *fresh, int64_t batch, int64_t size, REAL *scratch) {
    int any = 0;
    for (int64_t b = 0; fresh && b < batch; b++) any |= fresh[b];
    if (!any) return state;
    memcpy(scratch, state, sizeof(REAL) * batch * size);
    for (int64_t b = 0; b < batch; b++)
        if (fresh[b]) memset(scratch + b * size, 0, sizeof(REAL) * size);
    return scratch;
}

/* `gates` contains the input's part of the pre-activations and is overwritten by the gates; `hiddens` and `cells` are
   [T + 1, B, H] and contain the state before the first step, which is set to 0 where an episode starts; `tanh_cells`
   becomes tanh of the cells after each step. `weights` are packed, [H, 4 H]; `scratch` is [2, B, H]. Processes the rows
   `begin` ... `end` - 1 of each array. */
void NAME(lstm_forward)(
    REAL *gates, const REAL *weights, REAL *hiddens, REAL *cells, REAL *tanh_cells, const uint8_t *starts, REAL *scratch,
    int64_t steps, int64_t batch, int64_t size, int64_t begin, int64_t end) {
    const int64_t width = 4 * size, rows = end - begin;
    REAL *other = scratch + (batch + begin) * size;
    scratch += begin * size;
    for (int64_t t = 0; t < steps; t++) {
        const uint8_t *fresh = starts ? starts + t * batch + begin : 0;
        REAL *h = hiddens + (t * batch + begin) * size, *c = cells + (t * batch + begin) * size;
        const REAL *before = after_reset(h, fresh, rows, size, scratch), *old = after_reset(c, fresh, rows, size, other);
        if (t == 0 && before != h) {
            memcpy(h, before, sizeof(REAL) * rows * size);
            memcpy(c, old, sizeof(REAL) * rows * size);
        }
        product(before, size, rows, weights, size, width, gates + (t * batch + begin) * width, width);
        for (int64_t b = 0; b < rows; b++) {
            REAL *restrict i = gates + (t * batch + begin + b) * width, *restrict f = i + size, *restrict g = f + size;
            REAL *restrict o = g + size, *restrict after = c + (batch + b) * size, *restrict out = h + (batch + b) * size;
            REAL *restrict s = tanh_cells + (t * batch + begin + b) * size;
            const REAL *restrict was = old + b * size;
            sigmoid_inplace(i, 2 * size);
            tanh_inplace(g, size);
            sigmoid_inplace(o, size);
            for (int64_t k = 0; k < size; k++) s[k] = after[k] = f[k] * was[k] + i[k] * g[k];
            tanh_inplace(s, size);
            for (int64_t k = 0; k < size; k++) out[k] = o[k] * s[k];
        }
    }
}

/* `d_hiddens` and `d_cells`, [T, B, H] or NULL, are the gradients of the states after each step; `d_hidden` and
   `d_cell` [B, H] are outputs, the gradients of the state before the first step; `d_gates` those of the
   pre-activations. The weights are packed for the backward pass, [4 H, H]. */
void NAME(lstm_backward)(
    const REAL *gates, const REAL *weights, const REAL *cells, const REAL *tanh_cells, const uint8_t *starts,
    const REAL *d_hiddens, const REAL *d_cells, REAL *d_gates, REAL *d_hidden, REAL *d_cell, int64_t steps, int64_t batch,
    int64_t size, int64_t begin, int64_t end) {
    const int64_t width = 4 * size, first = begin * size, last = end * size;
    memset(d_hidden + first, 0, sizeof(REAL) * (last - first));
    memset(d_cell + first, 0, sizeof(REAL) * (last - first));
    for (int64_t t = steps - 1; t >= 0; t--) {
        const uint8_t *fresh = starts ? starts + t * batch : 0;
        for (int64_t k = first; d_hiddens && k < last; k++) d_hidden[k] += d_hiddens[t * batch * size + k];
        for (int64_t k = first; d_cells && k < last; k++) d_cell[k] += d_cells[t * batch * size + k];
        for (int64_t b = begin; b < end; b++) {
            const REAL *restrict i = gates + (t * batch + b) * width, *restrict f = i + size, *restrict g = f + size;
            const REAL *restrict o = g + size, *restrict s = tanh_cells + (t * batch + b) * size;
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
        memset(d_hidden + first, 0, sizeof(REAL) * (last - first));
        const REAL *sums = d_gates + (t * batch + begin) * width;
        product(sums, width, end - begin, weights, width, size, d_hidden + first, size);
        for (int64_t b = begin; fresh && b < end; b++)
            if (fresh[b]) memset(d_hidden + b * size, 0, sizeof(REAL) * size);
    }
}

/* Of a GRU, r, z, n. `gates` as above; `of_hidden` [T, B, H] is an output, the hidden state's part of n with its bias.
   `to_rz` and `to_n` are packed, [H, 2 H] and [H, H]; `scratch` is [B, H]. */
void NAME(gru_forward)(
    REAL *gates, const REAL *to_rz, const REAL *to_n, const REAL *bias, REAL *hiddens, REAL *of_hidden,
    const uint8_t *starts, REAL *scratch, int64_t steps, int64_t batch, int64_t size, int64_t begin, int64_t end) {
    const int64_t width = 3 * size, rows = end - begin;
    for (int64_t t = 0; t < steps; t++) {
        const uint8_t *fresh = starts ? starts + t * batch + begin : 0;
        REAL *h = hiddens + (t * batch + begin) * size, *r = gates + (t * batch + begin) * width;
        REAL *n_sums = of_hidden + (t * batch + begin) * size;
        const REAL *before = after_reset(h, fresh, rows, size, scratch + begin * size);
        if (t == 0 && before != h) memcpy(h, before, sizeof(REAL) * rows * size);
        for (int64_t b = 0; b < rows; b++) memcpy(n_sums + b * size, bias, sizeof(REAL) * size);
        product(before, size, rows, to_rz, size, 2 * size, r, width);
        product(before, size, rows, to_n, size, size, n_sums, size);
        for (int64_t b = 0; b < rows; b++) {
            REAL *restrict reset = r + b * width, *restrict z = reset + size, *restrict n = z + size;
            REAL *restrict out = h + (batch + b) * size;
            const REAL *restrict given = n_sums + b * size, *restrict was = before + b * size;
            sigmoid_inplace(reset, 2 * size);
            for (int64_t k = 0; k < size; k++) n[k] += reset[k] * given[k];
            tanh_inplace(n, size);
            for (int64_t k = 0; k < size; k++) out[k] = n[k] + z[k] * (was[k] - n[k]);
        }
    }
}

/* `d_gates`: gradients of the hidden state's part of the gates; `d_n` [T, B, H]: of the input's part of n; the weights
   are packed for the backward pass, [3 H, H]. */
void NAME(gru_backward)(
    const REAL *gates, const REAL *weights, const REAL *hiddens, const REAL *of_hidden, const uint8_t *starts,
    const REAL *d_hiddens, REAL *d_gates, REAL *d_n, REAL *d_hidden, int64_t steps, int64_t batch, int64_t size,
    int64_t begin, int64_t end) {
    const int64_t width = 3 * size, first = begin * size, last = end * size;
    memset(d_hidden + first, 0, sizeof(REAL) * (last - first));
    for (int64_t t = steps - 1; t >= 0; t--) {
        const uint8_t *fresh = starts ? starts + t * batch : 0;
        for (int64_t k = first; d_hiddens && k < last; k++) d_hidden[k] += d_hiddens[t * batch * size + k];
        for (int64_t b = begin; b < end; b++) {
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
        const REAL *sums = d_gates + (t * batch + begin) * width;
        product(sums, width, end - begin, weights, width, size, d_hidden + first, size);
        for (int64_t b = begin; fresh && b < end; b++)
            if (fresh[b]) memset(d_hidden + b * size, 0, sizeof(REAL) * size);
    }
}
