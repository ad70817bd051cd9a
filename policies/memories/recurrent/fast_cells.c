/* LSTM and GRU over time, forward and backward; see fast_native.py.

   Arrays are [T, B, ...]; a call processes the rows begin ... end - 1 of each step. Gates are in torch's order, i, f, g,
   o and r, z, n. Where `starts` [T, B] is not 0, the state is zero before the step; NULL: nowhere. */

#include "activations.h"
#include "packed.h"

/* The state before a step, [B, H], after a reset where `starts` is not 0: `state`, or a copy of it in `scratch`. */
static const REAL *after_reset(const REAL *state, const uint8_t *starts, int64_t batch, int64_t size, REAL *scratch) {
    int any = 0;
    for (int64_t b = 0; starts && b < batch; b++) any |= starts[b];
    if (!any) return state;
    memcpy(scratch, state, sizeof(REAL) * batch * size);
    for (int64_t b = 0; b < batch; b++)
        if (starts[b]) memset(scratch + b * size, 0, sizeof(REAL) * size);
    return scratch;
}

/* `gates` contains the input's part of the pre-activations and is overwritten by the gates; `hiddens` and `cells` are
   [T + 1, B, H] and contain the state before the first step, which is set to 0 where an episode starts; `tanh_cells`:
   output, tanh of the cells after each step. `weights` are packed, [H, 4 H]; `scratch` is [2, B, H]. */
void NAME(lstm_forward)(
    REAL *gates, const REAL *weights, REAL *hiddens, REAL *cells, REAL *tanh_cells, const uint8_t *starts,
    REAL *scratch, int64_t steps, int64_t batch, int64_t size, int64_t begin, int64_t end) {
    const int64_t width = 4 * size, rows = end - begin;
    REAL *other = scratch + (batch + begin) * size;
    scratch += begin * size;
    for (int64_t t = 0; t < steps; t++) {
        const uint8_t *starts_t = starts ? starts + t * batch + begin : 0;
        REAL *h = hiddens + (t * batch + begin) * size, *c = cells + (t * batch + begin) * size;
        const REAL *before = after_reset(h, starts_t, rows, size, scratch),
                   *old = after_reset(c, starts_t, rows, size, other);
        if (t == 0 && before != h) {
            memcpy(h, before, sizeof(REAL) * rows * size);
            memcpy(c, old, sizeof(REAL) * rows * size);
        }
        product(before, size, rows, weights, size, width, gates + (t * batch + begin) * width, width);
        for (int64_t b = 0; b < rows; b++) {
            REAL *restrict i = gates + (t * batch + begin + b) * width, *restrict f = i + size, *restrict g = f + size;
            REAL *restrict o = g + size, *restrict after = c + (batch + b) * size,
                           *restrict out = h + (batch + b) * size;
            REAL *restrict tanh_cell = tanh_cells + (t * batch + begin + b) * size;
            const REAL *restrict old_cell = old + b * size;
            sigmoid_inplace(i, 2 * size);
            tanh_inplace(g, size);
            sigmoid_inplace(o, size);
            for (int64_t k = 0; k < size; k++) tanh_cell[k] = after[k] = f[k] * old_cell[k] + i[k] * g[k];
            tanh_inplace(tanh_cell, size);
            for (int64_t k = 0; k < size; k++) out[k] = o[k] * tanh_cell[k];
        }
    }
}

/* `d_hiddens` and `d_cells`, [T, B, H] or NULL, are the gradients of the states after each step; `d_hidden` and
   `d_cell` [B, H] are outputs, the gradients of the state before the first step; `d_gates` those of the
   pre-activations. The weights are packed for the backward pass, [4 H, H]. */
void NAME(lstm_backward)(
    const REAL *gates, const REAL *weights, const REAL *cells, const REAL *tanh_cells, const uint8_t *starts,
    const REAL *d_hiddens, const REAL *d_cells, REAL *d_gates, REAL *d_hidden, REAL *d_cell, int64_t steps,
    int64_t batch, int64_t size, int64_t begin, int64_t end) {
    const int64_t width = 4 * size, first = begin * size, last = end * size;
    memset(d_hidden + first, 0, sizeof(REAL) * (last - first));
    memset(d_cell + first, 0, sizeof(REAL) * (last - first));
    for (int64_t t = steps - 1; t >= 0; t--) {
        const uint8_t *starts_t = starts ? starts + t * batch : 0;
        for (int64_t k = first; d_hiddens && k < last; k++) d_hidden[k] += d_hiddens[t * batch * size + k];
        for (int64_t k = first; d_cells && k < last; k++) d_cell[k] += d_cells[t * batch * size + k];
        for (int64_t b = begin; b < end; b++) {
            const REAL *restrict i = gates + (t * batch + b) * width, *restrict f = i + size, *restrict g = f + size;
            const REAL *restrict o = g + size, *restrict tanh_cell = tanh_cells + (t * batch + b) * size;
            const REAL *restrict old_cell = cells + (t * batch + b) * size, *restrict dh = d_hidden + b * size;
            REAL *restrict di = d_gates + (t * batch + b) * width, *restrict df = di + size, *restrict dg = df + size;
            REAL *restrict d_o = dg + size, *restrict dc = d_cell + b * size;
            const REAL not_reset = starts_t && starts_t[b] ? 0 : 1;
            for (int64_t k = 0; k < size; k++) {
                const REAL d_new_cell = dc[k] + dh[k] * o[k] * (1 - tanh_cell[k] * tanh_cell[k]);
                di[k] = d_new_cell * g[k] * i[k] * (1 - i[k]);
                df[k] = not_reset * d_new_cell * old_cell[k] * f[k] * (1 - f[k]);
                dg[k] = d_new_cell * i[k] * (1 - g[k] * g[k]);
                d_o[k] = dh[k] * tanh_cell[k] * o[k] * (1 - o[k]);
                dc[k] = not_reset * d_new_cell * f[k];
            }
        }
        memset(d_hidden + first, 0, sizeof(REAL) * (last - first));
        const REAL *d_gates_t = d_gates + (t * batch + begin) * width;
        product(d_gates_t, width, end - begin, weights, width, size, d_hidden + first, size);
        for (int64_t b = begin; starts_t && b < end; b++)
            if (starts_t[b]) memset(d_hidden + b * size, 0, sizeof(REAL) * size);
    }
}

/* As `lstm_forward`; `n_hidden` [T, B, H]: output, the hidden state's part of n with its bias.
   `to_rz` and `to_n` are packed, [H, 2 H] and [H, H]; `scratch` is [B, H]. */
void NAME(gru_forward)(
    REAL *gates, const REAL *to_rz, const REAL *to_n, const REAL *bias, REAL *hiddens, REAL *n_hidden,
    const uint8_t *starts, REAL *scratch, int64_t steps, int64_t batch, int64_t size, int64_t begin, int64_t end) {
    const int64_t width = 3 * size, rows = end - begin;
    for (int64_t t = 0; t < steps; t++) {
        const uint8_t *starts_t = starts ? starts + t * batch + begin : 0;
        REAL *h = hiddens + (t * batch + begin) * size, *r = gates + (t * batch + begin) * width;
        REAL *n_hidden_t = n_hidden + (t * batch + begin) * size;
        const REAL *before = after_reset(h, starts_t, rows, size, scratch + begin * size);
        if (t == 0 && before != h) memcpy(h, before, sizeof(REAL) * rows * size);
        for (int64_t b = 0; b < rows; b++) memcpy(n_hidden_t + b * size, bias, sizeof(REAL) * size);
        product(before, size, rows, to_rz, size, 2 * size, r, width);
        product(before, size, rows, to_n, size, size, n_hidden_t, size);
        for (int64_t b = 0; b < rows; b++) {
            REAL *restrict reset = r + b * width, *restrict z = reset + size, *restrict n = z + size;
            REAL *restrict out = h + (batch + b) * size;
            const REAL *restrict n_hidden_b = n_hidden_t + b * size, *restrict old_hidden = before + b * size;
            sigmoid_inplace(reset, 2 * size);
            for (int64_t k = 0; k < size; k++) n[k] += reset[k] * n_hidden_b[k];
            tanh_inplace(n, size);
            for (int64_t k = 0; k < size; k++) out[k] = n[k] + z[k] * (old_hidden[k] - n[k]);
        }
    }
}

/* `d_gates`: gradients of the hidden state's part of the gates; `d_n` [T, B, H]: of the input's part of n; the weights
   are packed for the backward pass, [3 H, H]. */
void NAME(gru_backward)(
    const REAL *gates, const REAL *weights, const REAL *hiddens, const REAL *n_hidden, const uint8_t *starts,
    const REAL *d_hiddens, REAL *d_gates, REAL *d_n, REAL *d_hidden, int64_t steps, int64_t batch, int64_t size,
    int64_t begin, int64_t end) {
    const int64_t width = 3 * size, first = begin * size, last = end * size;
    memset(d_hidden + first, 0, sizeof(REAL) * (last - first));
    for (int64_t t = steps - 1; t >= 0; t--) {
        const uint8_t *starts_t = starts ? starts + t * batch : 0;
        for (int64_t k = first; d_hiddens && k < last; k++) d_hidden[k] += d_hiddens[t * batch * size + k];
        for (int64_t b = begin; b < end; b++) {
            const REAL *restrict reset = gates + (t * batch + b) * width, *restrict z = reset + size;
            const REAL *restrict n = z + size, *restrict n_hidden_b = n_hidden + (t * batch + b) * size;
            const REAL *restrict old_hidden = hiddens + (t * batch + b) * size;
            REAL *restrict d_r = d_gates + (t * batch + b) * width, *restrict d_z = d_r + size,
                           *restrict d_h = d_z + size;
            REAL *restrict d_x = d_n + (t * batch + b) * size, *restrict dh = d_hidden + b * size;
            const REAL not_reset = starts_t && starts_t[b] ? 0 : 1;
            for (int64_t k = 0; k < size; k++) {
                d_x[k] = dh[k] * (1 - z[k]) * (1 - n[k] * n[k]);
                d_h[k] = d_x[k] * reset[k];
                d_r[k] = d_h[k] * n_hidden_b[k] * (1 - reset[k]);
                d_z[k] = dh[k] * (not_reset * old_hidden[k] - n[k]) * z[k] * (1 - z[k]);
                dh[k] *= z[k];
            }
        }
        const REAL *d_gates_t = d_gates + (t * batch + begin) * width;
        product(d_gates_t, width, end - begin, weights, width, size, d_hidden + first, size);
        for (int64_t b = begin; starts_t && b < end; b++)
            if (starts_t[b]) memset(d_hidden + b * size, 0, sizeof(REAL) * size);
    }
}
