/* Plastic networks over time, forward and backward; see fast_native.py. Equations and symbols as in memory.py and
   rules.py.

   x = h_{t-1}, y = h_t, G the trace before a step; w, α and G are [n, n], from unit i (rows) to unit j (columns), all
   padded with zeros to whole SIMD vectors. A call processes batch entries one after the other over all steps, so that a
   trace stays in the cache. In the forward pass the update of a step and the product of the next are one pass over the
   trace; in the backward pass a step makes two. Compiled twice, for REAL float and double. */

#include <stdlib.h>

#include "activations.h"
#include "packed.h"

#define ROWS 4
#define SET(p) (*(Wide *)(p))
#define GET(p) (*(const Wide *)(p))

typedef struct {
    int64_t batch, size, steps, checkpoint_interval, shared, oja, clipped; /* shared: all connections have one α */
    const REAL *w, *alpha, *eta, *clip;
    const uint8_t *starts;                 /* [T, B] or NULL */
    REAL *before, *after;                  /* [T, B, n]: x; W_in x + b, overwritten by y */
    const REAL *first_hidden, *first_hebb; /* the state before the first step */
    REAL *hebb,
        *checkpoints;    /* [B, n, n] after the last step; before each checkpoint_interval-th, [.., B, n, n], or NULL */
    const REAL *d_after; /* this and all below: backward only; [T, B, n] */
    REAL *d_input, *d_hidden, *d_hebb; /* [T, B, n]; of the state after the last step, then before the first */
    REAL *d_alpha, *d_eta;             /* [B, n, n] or [B], and [B]: added to */
} Tape;

INLINE Wide broadcast(REAL x) { return x - (Wide){0}; }

INLINE REAL sum_of(Wide v) {
    REAL sum = 0;
    for (int64_t k = 0; k < WIDE; k++) sum += v[k];
    return sum;
}

static int starts_at(const Tape *tape, int64_t at) { return tape->starts && tape->starts[at]; }

/* The decay factor of the trace, for each column. */
static void decay_of(const Tape *tape, const REAL *restrict y, REAL *restrict decay) {
    const REAL eta = tape->clipped ? 0 : *tape->eta;
    for (int64_t j = 0; j < tape->size; j++) decay[j] = 1 - (tape->oja ? eta * y[j] * y[j] : eta);
}

/* One pass over the trace. `update`: out = the trace after the step from x to y. `read_trace`: sums += (w + α out)ᵀ
   reads; with a shared α, sums += wᵀ reads and trace_sums += outᵀ reads. */
INLINE void pass_over_trace(
    const Tape *tape, const REAL *g, REAL *out, const REAL *decay, const REAL *x, const REAL *y, const REAL *reads,
    REAL *sums, REAL *trace_sums, const int update, const int read_trace, const int shared) {
    const int64_t n = tape->size;
    for (int64_t i = 0; i < n; i += ROWS) {
        Wide eta_x[ROWS], factors[ROWS];
        for (int r = 0; r < ROWS; r++) eta_x[r] = broadcast(update ? *tape->eta * x[i + r] : 0);
        for (int r = 0; r < ROWS; r++) factors[r] = broadcast(read_trace ? reads[i + r] : 0);
        for (int64_t j = 0; j < n; j += WIDE) {
            Wide sum = {0}, trace_sum = {0};
            for (int r = 0; r < ROWS; r++) {
                const int64_t at = (i + r) * n + j;
                Wide trace = GET(g + at);
                if (update) SET(out + at) = trace = trace * GET(decay + j) + eta_x[r] * GET(y + j);
                if (read_trace && shared) sum += factors[r] * GET(tape->w + at), trace_sum += factors[r] * trace;
                if (read_trace && !shared) sum += factors[r] * (GET(tape->w + at) + GET(tape->alpha + at) * trace);
            }
            if (read_trace) SET(sums + j) += sum;
            if (read_trace && shared) SET(trace_sums + j) += trace_sum;
        }
    }
}

static void update_trace(const Tape *tape, const REAL *g, REAL *out, const REAL *decay, const REAL *x, const REAL *y) {
    pass_over_trace(tape, g, out, decay, x, y, NULL, NULL, NULL, 1, 0, 0);
    const REAL clip = *tape->clip;
    for (int64_t k = 0; tape->clipped && k < tape->size * tape->size; k++) {
        const REAL lower = out[k] > clip ? clip : out[k];
        out[k] = lower < -clip ? -clip : lower;
    }
}

static void read_trace(const Tape *tape, const REAL *g, const REAL *x, REAL *sums, REAL *trace_sums) {
    if (tape->shared)
        pass_over_trace(tape, g, NULL, NULL, NULL, NULL, x, sums, trace_sums, 0, 1, 1);
    else
        pass_over_trace(tape, g, NULL, NULL, NULL, NULL, x, sums, trace_sums, 0, 1, 0);
}

static void update_and_read(
    const Tape *tape, const REAL *g, REAL *out, const REAL *decay, const REAL *x, const REAL *y, REAL *sums,
    REAL *trace_sums) {
    if (tape->shared)
        pass_over_trace(tape, g, out, decay, x, y, y, sums, trace_sums, 1, 1, 1);
    else
        pass_over_trace(tape, g, out, decay, x, y, y, sums, trace_sums, 1, 1, 0);
}

/* Steps first ... last - 1 of the batch entries begin ... end - 1. */
void NAME(forward)(const Tape *tape, int64_t first, int64_t last, int64_t begin, int64_t end) {
    const int64_t n = tape->size, row = sizeof(REAL) * n, matrix = n * n;
    REAL decay[n], sums[n], trace_sums[n];
    for (int64_t b = begin; b < end; b++) {
        REAL *hebb = tape->hebb + b * matrix;
        int ready = 0; /* whether `sums` already belong to this step */
        for (int64_t t = first; t < last; t++) {
            const int64_t at = t * tape->batch + b, starts = starts_at(tape, at);
            REAL *x = tape->before + at * n, *y = tape->after + at * n;
            const REAL *g = t ? hebb : tape->first_hebb + b * matrix;
            if (starts) {
                memset(x, 0, row);
                memset(hebb, 0, row * n);
                g = hebb;
            } else
                memcpy(x, t ? y - tape->batch * n : tape->first_hidden + b * n, row);
            if (tape->checkpoints && t % tape->checkpoint_interval == 0)
                memcpy(tape->checkpoints + (t / tape->checkpoint_interval * tape->batch + b) * matrix, g, row * n);
            if (!ready) memset(sums, 0, row), memset(trace_sums, 0, row);
            if (!ready && !starts) read_trace(tape, g, x, sums, trace_sums);
            for (int64_t j = 0; j < n; j++)
                y[j] += sums[j] + (tape->shared ? *tape->alpha * trace_sums[j] : 0); /* (1) */
            tanh_inplace(y, n);
            decay_of(tape, y, decay);
            ready = t + 1 < last && !starts_at(tape, at + tape->batch) && !tape->clipped;
            memset(sums, 0, row), memset(trace_sums, 0, row);
            if (ready)
                update_and_read(tape, g, hebb, decay, x, y, sums, trace_sums);
            else
                update_trace(tape, g, hebb, decay, x, y);
        }
    }
}

/* From d_hebb of the trace after a step: from_x[j] = Σ_i x[i] d_hebb[i, j], d_decay[j] = Σ_i d_hebb[i, j] G[i, j] and
   d_x[i] = η Σ_j d_hebb[i, j] y[j]. */
static void update_backward(
    const Tape *tape, const REAL *g, const REAL *d_hebb, const REAL *x, const REAL *y, REAL *from_x, REAL *d_decay,
    REAL *d_x) {
    const int64_t n = tape->size;
    memset(from_x, 0, sizeof(REAL) * n);
    memset(d_decay, 0, sizeof(REAL) * n);
    for (int64_t i = 0; i < n; i += ROWS) {
        Wide factors[ROWS], sums[ROWS];
        for (int r = 0; r < ROWS; r++) factors[r] = broadcast(x[i + r]), sums[r] = broadcast(0);
        for (int64_t j = 0; j < n; j += WIDE) {
            Wide x_d = GET(from_x + j), d_decay_j = GET(d_decay + j);
            for (int r = 0; r < ROWS; r++) {
                const Wide d = GET(d_hebb + (i + r) * n + j);
                x_d += factors[r] * d;
                d_decay_j += d * GET(g + (i + r) * n + j);
                sums[r] += d * GET(y + j);
            }
            SET(from_x + j) = x_d, SET(d_decay + j) = d_decay_j;
        }
        for (int r = 0; r < ROWS; r++) d_x[i + r] = *tape->eta * sum_of(sums[r]);
    }
}

/* Backward pass of eq. (1): d_hebb is overwritten by the gradient of G; adds to d_x and d_alpha; returns the gradient of
   a shared α. */
INLINE REAL product_backward(
    const Tape *tape, const REAL *g, REAL *d_hebb, const REAL *decay, const REAL *x, const REAL *d_z, REAL *d_x,
    REAL *d_alpha, const int shared) {
    const int64_t n = tape->size;
    REAL d_shared = 0;
    for (int64_t i = 0; i < n; i += ROWS) {
        Wide factors[ROWS], sums[ROWS], trace_sums[ROWS];
        for (int r = 0; r < ROWS; r++) factors[r] = broadcast(x[i + r] * (shared ? *tape->alpha : 1));
        for (int r = 0; r < ROWS; r++) sums[r] = broadcast(0), trace_sums[r] = broadcast(0);
        for (int64_t j = 0; j < n; j += WIDE)
            for (int r = 0; r < ROWS; r++) {
                const int64_t at = (i + r) * n + j;
                const Wide d_z_j = GET(d_z + j), trace = GET(g + at), outer = factors[r] * d_z_j;
                if (shared) {
                    sums[r] += GET(tape->w + at) * d_z_j;
                    trace_sums[r] += trace * d_z_j;
                    SET(d_hebb + at) = GET(d_hebb + at) * GET(decay + j) + outer;
                } else {
                    const Wide alpha = GET(tape->alpha + at);
                    sums[r] += (GET(tape->w + at) + alpha * trace) * d_z_j;
                    SET(d_hebb + at) = GET(d_hebb + at) * GET(decay + j) + alpha * outer;
                    SET(d_alpha + at) += outer * trace;
                }
            }
        for (int r = 0; r < ROWS; r++) {
            d_x[i + r] += sum_of(sums[r]);
            if (!shared) continue;
            const REAL trace_sum = sum_of(trace_sums[r]);
            d_x[i + r] += *tape->alpha * trace_sum;
            d_shared += x[i + r] * trace_sum;
        }
    }
    return d_shared;
}

/* Backward pass of step t of entry b; g: the trace before the step. */
static void
step_backward(const Tape *tape, int64_t b, int64_t at, const REAL *g, REAL *d_hebb, REAL *d_alpha, REAL *d_eta) {
    const int64_t n = tape->size;
    const REAL eta = *tape->eta, clip = *tape->clip;
    const REAL *restrict x = tape->before + at * n, *restrict y = tape->after + at * n;
    REAL decay[n], from_x[n], d_decay[n], d_x[n], sum = 0;
    REAL *d_z = tape->d_input + at * n, *d_hidden = tape->d_hidden + b * n;
    for (int64_t i = 0; tape->clipped && i < n; i++)
        for (int64_t j = 0; j < n; j++) {
            const REAL added = g[i * n + j] + eta * x[i] * y[j];
            d_hebb[i * n + j] = added > clip || added < -clip ? 0 : d_hebb[i * n + j];
        }
    update_backward(tape, g, d_hebb, x, y, from_x, d_decay, d_x);
    for (int64_t j = 0; j < n; j++) {
        const REAL d_decay_j = tape->clipped ? 0 : d_decay[j],
                   d_y = d_hidden[j] + tape->d_after[at * n + j] + eta * from_x[j];
        sum += from_x[j] * y[j] - d_decay_j * (tape->oja ? y[j] * y[j] : 1);
        d_z[j] = (d_y - (tape->oja ? 2 * eta * d_decay_j * y[j] : 0)) * (1 - y[j] * y[j]);
    }
    *d_eta += sum;
    decay_of(tape, y, decay);
    if (tape->shared)
        *d_alpha += product_backward(tape, g, d_hebb, decay, x, d_z, d_x, NULL, 1);
    else
        product_backward(tape, g, d_hebb, decay, x, d_z, d_x, d_alpha, 0);
    memcpy(d_hidden, d_x, sizeof d_x);
    if (!starts_at(tape, at)) return;
    memset(d_hidden, 0, sizeof d_x);
    memset(d_hebb, 0, sizeof(REAL) * n * n);
}

/* Backward pass over all steps for the batch entries begin ... end - 1. Returns 0 if the traces between two checkpoints
   do not fit into memory. d_alpha of all these entries is summed in that of the first. */
int NAME(backward)(const Tape *tape, int64_t begin, int64_t end) {
    const int64_t n = tape->size, matrix = n * n, batch = tape->batch;
    REAL *traces, *d_alpha = tape->d_alpha + begin * (tape->shared ? 1 : matrix), decay[n];
    if (posix_memalign((void **)&traces, 64, sizeof(REAL) * matrix * tape->checkpoint_interval)) return 0;
    for (int64_t b = begin; b < end; b++)
        for (int64_t first = (tape->steps - 1) / tape->checkpoint_interval * tape->checkpoint_interval; first >= 0;
             first -= tape->checkpoint_interval) {
            const int64_t last =
                first + tape->checkpoint_interval < tape->steps ? first + tape->checkpoint_interval : tape->steps;
            memcpy(
                traces, tape->checkpoints + (first / tape->checkpoint_interval * batch + b) * matrix,
                sizeof(REAL) * matrix);
            for (int64_t t = first + 1; t < last; t++) {
                const int64_t before = ((t - 1) * batch + b) * n;
                REAL *trace = traces + (t - first) * matrix;
                decay_of(tape, tape->after + before, decay);
                if (starts_at(tape, t * batch + b))
                    memset(trace, 0, sizeof(REAL) * matrix);
                else
                    update_trace(tape, trace - matrix, trace, decay, tape->before + before, tape->after + before);
            }
            for (int64_t t = last - 1; t >= first; t--)
                step_backward(
                    tape, b, t * batch + b, traces + (t - first) * matrix, tape->d_hebb + b * matrix, d_alpha,
                    tape->d_eta + b);
        }
    free(traces);
    return 1;
}
