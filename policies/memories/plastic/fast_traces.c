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
    int64_t batch, size, steps, stride, shared, oja, clipped; /* shared: all connections have one α */
    const REAL *w, *alpha, *eta, *clip;
    const uint8_t *starts;                   /* [T, B] or NULL: where an episode starts with a step */
    REAL *before, *after;                    /* [T, B, n]: x; what the input gives, which becomes y */
    const REAL *first_hidden, *first_hebb;   /* the state before the first step */
    REAL *hebb, *kept;                       /* [B, n, n] after the last; before each stride-th [.., B, n, n], or NULL */
    const REAL *d_after;                     /* backward only, as all that follow; [T, B, n] */
    REAL *d_given, *d_hidden, *d_hebb;       /* [T, B, n]; of the state after the last step, then before the first */
    REAL *d_alpha, *d_eta;                   /* [B, n, n] or [B], and [B]: added to */
} Tape;

INLINE Wide all(REAL x) { return x - (Wide){0}; }

INLINE REAL total(Wide v) {
    REAL sum = 0;
    for (int64_t k = 0; k < WIDE; k++) sum += v[k];
    return sum;
}

static int starts_at(const Tape *tape, int64_t at) { return tape->starts && tape->starts[at]; }

/* The factor at which the trace of each column is kept. */
static void kept_of(const Tape *tape, const REAL *restrict y, REAL *restrict keep) {
    const REAL eta = tape->clipped ? 0 : *tape->eta;
    for (int64_t j = 0; j < tape->size; j++) keep[j] = 1 - (tape->oja ? eta * y[j] * y[j] : eta);
}

/* `out` becomes the trace after the step from x to y, if `learn`; sums += (w + α out) x' of the step from x' = `reads` on, if
   `read`; where all share α, of w alone, and traced += out x'. */
INLINE void over(
    const Tape *tape, const REAL *g, REAL *out, const REAL *keep, const REAL *x, const REAL *y, const REAL *reads,
    REAL *sums, REAL *traced, const int learn, const int read, const int shared) {
    const int64_t n = tape->size;
    for (int64_t i = 0; i < n; i += ROWS) {
        Wide given[ROWS], factors[ROWS];
        for (int r = 0; r < ROWS; r++) given[r] = all(learn ? *tape->eta * x[i + r] : 0);
        for (int r = 0; r < ROWS; r++) factors[r] = all(read ? reads[i + r] : 0);
        for (int64_t j = 0; j < n; j += WIDE) {
            Wide sum = {0}, of_trace = {0};
            for (int r = 0; r < ROWS; r++) {
                const int64_t at = (i + r) * n + j;
                Wide trace = GET(g + at);
                if (learn) SET(out + at) = trace = trace * GET(keep + j) + given[r] * GET(y + j);
                if (read && shared) sum += factors[r] * GET(tape->w + at), of_trace += factors[r] * trace;
                if (read && !shared) sum += factors[r] * (GET(tape->w + at) + GET(tape->alpha + at) * trace);
            }
            if (read) SET(sums + j) += sum;
            if (read && shared) SET(traced + j) += of_trace;
        }
    }
}

static void learn(const Tape *tape, const REAL *g, REAL *out, const REAL *keep, const REAL *x, const REAL *y) {
    over(tape, g, out, keep, x, y, NULL, NULL, NULL, 1, 0, 0);
    const REAL clip = *tape->clip;
    for (int64_t k = 0; tape->clipped && k < tape->size * tape->size; k++) {
        const REAL lower = out[k] > clip ? clip : out[k];
        out[k] = lower < -clip ? -clip : lower;
    }
}

static void read(const Tape *tape, const REAL *g, const REAL *x, REAL *sums, REAL *traced) {
    if (tape->shared)
        over(tape, g, NULL, NULL, NULL, NULL, x, sums, traced, 0, 1, 1);
    else
        over(tape, g, NULL, NULL, NULL, NULL, x, sums, traced, 0, 1, 0);
}

static void learn_and_read(
    const Tape *tape, const REAL *g, REAL *out, const REAL *keep, const REAL *x, const REAL *y, REAL *sums, REAL *traced) {
    if (tape->shared)
        over(tape, g, out, keep, x, y, y, sums, traced, 1, 1, 1);
    else
        over(tape, g, out, keep, x, y, y, sums, traced, 1, 1, 0);
}

/* Steps first ... last - 1 of the batch entries begin ... end - 1. */
void NAME(forward)(const Tape *tape, int64_t first, int64_t last, int64_t begin, int64_t end) {
    const int64_t n = tape->size, row = sizeof(REAL) * n, matrix = n * n;
    REAL keep[n], sums[n], traced[n];
    for (int64_t b = begin; b < end; b++) {
        REAL *hebb = tape->hebb + b * matrix;
        int ready = 0; /* whether `sums` are those of the step */
        for (int64_t t = first; t < last; t++) {
            const int64_t at = t * tape->batch + b, fresh = starts_at(tape, at);
            REAL *x = tape->before + at * n, *y = tape->after + at * n;
            const REAL *g = t ? hebb : tape->first_hebb + b * matrix;
            if (fresh) {
                memset(x, 0, row);
                memset(hebb, 0, row * n);
                g = hebb;
            } else
                memcpy(x, t ? y - tape->batch * n : tape->first_hidden + b * n, row);
            if (tape->kept && t % tape->stride == 0)
                memcpy(tape->kept + (t / tape->stride * tape->batch + b) * matrix, g, row * n);
            if (!ready) memset(sums, 0, row), memset(traced, 0, row);
            if (!ready && !fresh) read(tape, g, x, sums, traced);
            for (int64_t j = 0; j < n; j++) y[j] += sums[j] + (tape->shared ? *tape->alpha * traced[j] : 0); /* (1) */
            tanh_inplace(y, n);
            kept_of(tape, y, keep);
            ready = t + 1 < last && !starts_at(tape, at + tape->batch) && !tape->clipped;
            memset(sums, 0, row), memset(traced, 0, row);
            if (ready)
                learn_and_read(tape, g, hebb, keep, x, y, sums, traced);
            else
                learn(tape, g, hebb, keep, x, y);
        }
    }
}

/* Of d_hebb, that of the trace after a step: Σ_i x[i] d_hebb[i, j], Σ_i d_hebb[i, j] G[i, j] and η Σ_j d_hebb[i, j] y[j]. */
static void of_update(
    const Tape *tape, const REAL *g, const REAL *d_hebb, const REAL *x, const REAL *y, REAL *from_x, REAL *lost, REAL *d_x) {
    const int64_t n = tape->size;
    memset(from_x, 0, sizeof(REAL) * n);
    memset(lost, 0, sizeof(REAL) * n);
    for (int64_t i = 0; i < n; i += ROWS) {
        Wide factors[ROWS], sums[ROWS];
        for (int r = 0; r < ROWS; r++) factors[r] = all(x[i + r]), sums[r] = all(0);
        for (int64_t j = 0; j < n; j += WIDE) {
            Wide given = GET(from_x + j), gone = GET(lost + j);
            for (int r = 0; r < ROWS; r++) {
                const Wide d = GET(d_hebb + (i + r) * n + j);
                given += factors[r] * d;
                gone += d * GET(g + (i + r) * n + j);
                sums[r] += d * GET(y + j);
            }
            SET(from_x + j) = given, SET(lost + j) = gone;
        }
        for (int r = 0; r < ROWS; r++) d_x[i + r] = *tape->eta * total(sums[r]);
    }
}

/* d_hebb becomes that of G; d_x, and d_alpha, are added to; returns the gradient of a shared α. */
INLINE REAL of_product(
    const Tape *tape, const REAL *g, REAL *d_hebb, const REAL *keep, const REAL *x, const REAL *d_z, REAL *d_x, REAL *d_alpha,
    const int shared) {
    const int64_t n = tape->size;
    REAL d_shared = 0;
    for (int64_t i = 0; i < n; i += ROWS) {
        Wide factors[ROWS], sums[ROWS], traced[ROWS];
        for (int r = 0; r < ROWS; r++) factors[r] = all(x[i + r] * (shared ? *tape->alpha : 1));
        for (int r = 0; r < ROWS; r++) sums[r] = all(0), traced[r] = all(0);
        for (int64_t j = 0; j < n; j += WIDE)
            for (int r = 0; r < ROWS; r++) {
                const int64_t at = (i + r) * n + j;
                const Wide given = GET(d_z + j), trace = GET(g + at), of_both = factors[r] * given;
                if (shared) {
                    sums[r] += GET(tape->w + at) * given;
                    traced[r] += trace * given;
                    SET(d_hebb + at) = GET(d_hebb + at) * GET(keep + j) + of_both;
                } else {
                    const Wide alpha = GET(tape->alpha + at);
                    sums[r] += (GET(tape->w + at) + alpha * trace) * given;
                    SET(d_hebb + at) = GET(d_hebb + at) * GET(keep + j) + alpha * of_both;
                    SET(d_alpha + at) += of_both * trace;
                }
            }
        for (int r = 0; r < ROWS; r++) {
            d_x[i + r] += total(sums[r]);
            if (!shared) continue;
            const REAL of_trace = total(traced[r]);
            d_x[i + r] += *tape->alpha * of_trace;
            d_shared += x[i + r] * of_trace;
        }
    }
    return d_shared;
}

/* Backward pass of step t of entry b; g: the trace before the step. */
static void undo(const Tape *tape, int64_t b, int64_t at, const REAL *g, REAL *d_hebb, REAL *d_alpha, REAL *d_eta) {
    const int64_t n = tape->size;
    const REAL eta = *tape->eta, clip = *tape->clip, *restrict x = tape->before + at * n, *restrict y = tape->after + at * n;
    REAL keep[n], from_x[n], lost[n], d_x[n], *d_z = tape->d_given + at * n, *d_hidden = tape->d_hidden + b * n, sum = 0;
    for (int64_t i = 0; tape->clipped && i < n; i++)
        for (int64_t j = 0; j < n; j++) {
            const REAL added = g[i * n + j] + eta * x[i] * y[j];
            d_hebb[i * n + j] = added > clip || added < -clip ? 0 : d_hebb[i * n + j];
        }
    of_update(tape, g, d_hebb, x, y, from_x, lost, d_x);
    for (int64_t j = 0; j < n; j++) {
        const REAL gone = tape->clipped ? 0 : lost[j], d_y = d_hidden[j] + tape->d_after[at * n + j] + eta * from_x[j];
        sum += from_x[j] * y[j] - gone * (tape->oja ? y[j] * y[j] : 1);
        d_z[j] = (d_y - (tape->oja ? 2 * eta * gone * y[j] : 0)) * (1 - y[j] * y[j]);
    }
    *d_eta += sum;
    kept_of(tape, y, keep);
    if (tape->shared)
        *d_alpha += of_product(tape, g, d_hebb, keep, x, d_z, d_x, NULL, 1);
    else
        of_product(tape, g, d_hebb, keep, x, d_z, d_x, d_alpha, 0);
    memcpy(d_hidden, d_x, sizeof d_x);
    if (!starts_at(tape, at)) return;
    memset(d_hidden, 0, sizeof d_x);
    memset(d_hebb, 0, sizeof(REAL) * n * n);
}

/* Backward pass over all steps for the batch entries begin ... end - 1. Returns whether memory sufficed for the traces
   of a stride. d_alpha of all these entries is that of the first. */
int NAME(backward)(const Tape *tape, int64_t begin, int64_t end) {
    const int64_t n = tape->size, matrix = n * n, batch = tape->batch;
    REAL *traces, *d_alpha = tape->d_alpha + begin * (tape->shared ? 1 : matrix), keep[n];
    if (posix_memalign((void **)&traces, 64, sizeof(REAL) * matrix * tape->stride)) return 0;
    for (int64_t b = begin; b < end; b++)
        for (int64_t first = (tape->steps - 1) / tape->stride * tape->stride; first >= 0; first -= tape->stride) {
            const int64_t last = first + tape->stride < tape->steps ? first + tape->stride : tape->steps;
            memcpy(traces, tape->kept + (first / tape->stride * batch + b) * matrix, sizeof(REAL) * matrix);
            for (int64_t t = first + 1; t < last; t++) {
                const int64_t before = ((t - 1) * batch + b) * n;
                REAL *trace = traces + (t - first) * matrix;
                kept_of(tape, tape->after + before, keep);
                if (starts_at(tape, t * batch + b))
                    memset(trace, 0, sizeof(REAL) * matrix);
                else
                    learn(tape, trace - matrix, trace, keep, tape->before + before, tape->after + before);
            }
            for (int64_t t = last - 1; t >= first; t--)
                undo(tape, b, t * batch + b, traces + (t - first) * matrix, tape->d_hebb + b * matrix, d_alpha, tape->d_eta + b);
        }
    free(traces);
    return 1;
}
