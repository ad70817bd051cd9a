/* The dynamic Kanerva machine over time, forward and backward; see fast.py. Equations and symbols as in memory.py; M is
   [slots, word], L [slots, slots]. The memory after a write is used twice: to read in this step, and to solve for the
   write weights in the next one. M Mᵀ + λ I is factorised once for both. Compiled twice, for REAL float
   and double. */

#include "products.h"

typedef struct {
    int64_t batch, slots, word;
    const REAL *noise;                                        /* variance of the observation noise, and λ */
    const uint8_t *starts;                                    /* [T, B], or NULL */
    const REAL *z, *cue;                                      /* [T, B, word] */
    const REAL *first_mean, *first_root, *first_factor;       /* before the first step, [B, ...] */
    const REAL *initial_mean, *initial_root, *initial_factor; /* at the start of an episode */
    REAL *mean, *root, *factor;                               /* after each step, [T, B, ...] */
    REAL *w, *read_w, *f, *wu, *delta, *reads, *kl;           /* [T, B, slots], .., [T, B, word], .., [T, B] */
    const REAL *d_w, *d_read_w, *d_reads, *d_kl;              /* this and all below: backward only */
    REAL *d_z, *d_cue, *d_noise, *d_mean, *d_root;            /* [T, B, word], .., [B, 2], of the state before a step */
    REAL *d_initial_mean, *d_initial_root;                    /* [B, ...] */
} Tape;

typedef struct {
    const REAL *mean, *root, *factor;
} State;

static State state_before(const Tape *tape, int64_t t, int64_t b) {
    const int64_t size = tape->slots * tape->word, square = tape->slots * tape->slots, at = (t - 1) * tape->batch + b;
    if (tape->starts && tape->starts[t * tape->batch + b])
        return (State){tape->initial_mean, tape->initial_root, tape->initial_factor};
    if (t) return (State){tape->mean + at * size, tape->root + at * square, tape->factor + at * square};
    return (State){tape->first_mean + b * size, tape->first_root + b * square, tape->first_factor + b * square};
}

/* out = matrix x */
static void times(const REAL *matrix, int64_t rows, int64_t columns, const REAL *x, REAL *out) {
    for (int64_t i = 0; i < rows; i++) out[i] = dot(matrix + i * columns, x, columns);
}

/* out = matrixᵀ x */
static void times_transposed(const REAL *matrix, int64_t rows, int64_t columns, const REAL *x, REAL *out) {
    memset(out, 0, sizeof(REAL) * columns);
    for (int64_t i = 0; i < rows; i++) axpy(out, x[i], matrix + i * columns, columns);
}

/* matrix += a bᵀ + c dᵀ */
static void add_products(
    REAL *restrict matrix, int64_t rows, int64_t columns, const REAL *a, const REAL *restrict b, const REAL *c,
    const REAL *restrict d) {
    for (int64_t i = 0; i < rows; i++, matrix += columns)
        for (int64_t k = 0; k < columns; k++) matrix[k] += a[i] * b[k] + c[i] * d[k];
}

/* Gaussian elimination of M Mᵀ + λ I for `count` memories: the upper triangle, with the inverse pivots on the
   diagonal. */
void NAME(factorise)(const REAL *mean, int64_t count, int64_t slots, int64_t word, const REAL *noise, REAL *factor) {
    for (int64_t b = 0; b < count; b++, mean += slots * word, factor += slots * slots) {
        for (int64_t i = 0; i < slots; i++) {
            for (int64_t j = i; j < slots; j++) factor[i * slots + j] = dot(mean + i * word, mean + j * word, word);
            factor[i * slots + i] += noise[1];
        }
        for (int64_t k = 0; k < slots; k++) {
            REAL *row = factor + k * slots, inverse = 1 / row[k];
            for (int64_t i = k + 1; i < slots; i++) axpy(factor + i * slots + i, -row[i] * inverse, row + i, slots - i);
            row[k] = inverse;
        }
    }
}

/* x = (M Mᵀ + λ I)⁻¹ x, in place */
static void solve(const REAL *factor, int64_t n, REAL *x) {
    for (int64_t k = 0; k < n; k++) axpy(x + k + 1, -x[k] * factor[k * n + k], factor + k * n + k + 1, n - k - 1);
    for (int64_t k = n - 1; k >= 0; k--)
        x[k] = (x[k] - dot(factor + k * n + k + 1, x + k + 1, n - k - 1)) * factor[k * n + k];
}

/* Steps first ... last - 1 of the batch entries begin ... end - 1. */
void NAME(forward)(const Tape *tape, int64_t first, int64_t last, int64_t begin, int64_t end) {
    const int64_t n = tape->slots, word = tape->word, batch = tape->batch;
    const REAL noise = tape->noise[0];
    for (int64_t b = begin; b < end; b++)
        for (int64_t t = first; t < last; t++) {
            const State old = state_before(tape, t, b);
            const int64_t at = t * batch + b;
            const REAL *z = tape->z + at * word;
            REAL *mean = tape->mean + at * n * word, *root = tape->root + at * n * n,
                 *factor = tape->factor + at * n * n;
            REAL *w = tape->w + at * n, *f = tape->f + at * n, *wu = tape->wu + at * n,
                 *delta = tape->delta + at * word;

            times(old.mean, n, word, z, w);
            solve(old.factor, n, w);
            times_transposed(old.root, n, n, w, f);
            times(old.root, n, n, f, wu);
            times_transposed(old.mean, n, word, w, delta);
            for (int64_t k = 0; k < word; k++) delta[k] = z[k] - delta[k];
            const REAL wuw = dot(f, f, n), v = wuw + noise, alpha = 1 / (v + sqrt(noise * v)), share = wuw / v;
            tape->kl[at] = (share / v * dot(delta, delta, word) - word * (share + (REAL)log(noise / v))) / 2;
            for (int64_t i = 0; i < n; i++) {
                const REAL gain = wu[i] / v, shrink = -alpha * wu[i];
                for (int64_t k = 0; k < word; k++) mean[i * word + k] = old.mean[i * word + k] + gain * delta[k];
                for (int64_t k = 0; k < n; k++) root[i * n + k] = old.root[i * n + k] + shrink * f[k];
            }

            REAL *read_w = tape->read_w + at * n;
            NAME(factorise)(mean, 1, n, word, tape->noise, factor);
            times(mean, n, word, tape->cue + at * word, read_w);
            solve(factor, n, read_w);
            times_transposed(mean, n, word, read_w, tape->reads + at * word);
        }
}

/* Backward pass over all steps, from the last to the first. d_mean and d_root of the state after `last` are overwritten
   by those of the state before `first`. The gradients of a solve x = A⁻¹ M q with A = M Mᵀ + λ I are, with
   y = A⁻¹ d_x: d_q = Mᵀ y, d_M = y (q - Mᵀ x)ᵀ - x d_qᵀ, d_λ = -y · x. */
void NAME(backward)(const Tape *tape, int64_t first, int64_t last, int64_t begin, int64_t end) {
    const int64_t n = tape->slots, word = tape->word, batch = tape->batch;
    const REAL noise = tape->noise[0];
    REAL y[n], x[n], d_wu[n], d_f[n], gain[n], temp[n > word ? n : word], residual[word], d_delta[word];
    for (int64_t b = begin; b < end; b++) {
        REAL *d_mean = tape->d_mean + b * n * word, *d_root = tape->d_root + b * n * n,
             *d_noise = tape->d_noise + 2 * b;
        for (int64_t t = last - 1; t >= first; t--) {
            const State old = state_before(tape, t, b);
            const int64_t at = t * batch + b;
            const REAL *mean = tape->mean + at * n * word, *factor = tape->factor + at * n * n;
            const REAL *w = tape->w + at * n, *f = tape->f + at * n, *wu = tape->wu + at * n;
            const REAL *delta = tape->delta + at * word, *read_w = tape->read_w + at * n,
                       *d_read = tape->d_reads + at * word;
            REAL *d_z = tape->d_z + at * word, *d_cue = tape->d_cue + at * word;

            /* the read */
            times(mean, n, word, d_read, y);
            axpy(y, 1, tape->d_read_w + at * n, n);
            solve(factor, n, y);
            d_noise[1] -= dot(y, read_w, n);
            times_transposed(mean, n, word, y, d_cue);
            for (int64_t k = 0; k < word; k++) {
                residual[k] = tape->cue[at * word + k] - tape->reads[at * word + k];
                temp[k] = d_read[k] - d_cue[k];
            }
            add_products(d_mean, n, word, y, residual, read_w, temp);

            /* the write: M + c Δᵀ, L - α wU f, and its divergence */
            const REAL wuw = dot(f, f, n), v = wuw + noise, alpha = 1 / (v + sqrt(noise * v)), share = wuw / v;
            const REAL delta_square = dot(delta, delta, word), d_kl = tape->d_kl[at] / 2;
            for (int64_t i = 0; i < n; i++) gain[i] = wu[i] / v;
            times_transposed(d_mean, n, word, gain, d_delta);
            axpy(d_delta, 2 * d_kl * share / v, delta, word);
            times(d_mean, n, word, delta, d_wu);
            times(d_root, n, n, f, x);
            times_transposed(d_root, n, n, wu, d_f);
            const REAL d_alpha = -dot(wu, x, n) * alpha * alpha, d_share = d_kl * (delta_square / v - word);
            const REAL d_v = d_kl * (word - share * delta_square / v) / v - (dot(d_wu, gain, n) + d_share * share) / v -
                             d_alpha * (1 + sqrt(noise / v) / 2);
            const REAL d_wuw = d_v + d_share / v;
            d_noise[0] += d_v - d_kl * word / noise - d_alpha * sqrt(v / noise) / 2;
            for (int64_t i = 0; i < n; i++) d_wu[i] = d_wu[i] / v - alpha * x[i];
            times_transposed(old.root, n, n, d_wu, temp);
            for (int64_t i = 0; i < n; i++) d_f[i] = temp[i] + 2 * d_wuw * f[i] - alpha * d_f[i];
            add_products(d_root, n, n, d_wu, f, w, d_f);

            /* the write weights */
            times(old.root, n, n, d_f, y);
            times(old.mean, n, word, d_delta, x);
            for (int64_t i = 0; i < n; i++) y[i] += tape->d_w[at * n + i] - x[i];
            solve(old.factor, n, y);
            d_noise[1] -= dot(y, w, n);
            times_transposed(old.mean, n, word, y, d_z);
            axpy(d_z, 1, d_delta, word);
            for (int64_t i = 0; i < n; i++) x[i] = -w[i];
            add_products(d_mean, n, word, y, delta, x, d_z);

            if (tape->starts && tape->starts[at]) {
                axpy(tape->d_initial_mean + b * n * word, 1, d_mean, n * word);
                axpy(tape->d_initial_root + b * n * n, 1, d_root, n * n);
                memset(d_mean, 0, sizeof(REAL) * n * word);
                memset(d_root, 0, sizeof(REAL) * n * n);
            }
        }
    }
}
