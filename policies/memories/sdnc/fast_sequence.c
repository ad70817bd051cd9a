/* The sparse DNC over time, forward and backward; see fast_native.py. Equations and symbols as in memory.py and
   sparse.py. M, its norms, the links and the times of access are one working copy for a whole sequence; the tape stores
   for every step only the few words and slots that it wrote, read and linked. Compiled twice, for REAL float and
   double. */

#include "cells.h"
#include "packed.h"
#include "products.h"

typedef struct {
    int64_t batch, hidden, slots, word, heads, reads, links; /* reads: K; links: K_L */
    double threshold;
    const uint8_t *starts;                                   /* [T, B], or NULL */
    const REAL *recurrent, *interface, *bias;                /* packed, each for its direction; the bias as it is */
    REAL *gates, *carried, *cells, *tanh_cells;                /* [T, B, ...]; carried, before a step: hidden, words read */
    REAL *features, *parameters;                             /* hidden, words read; k, β, a, α and γ, π */
    REAL *weights, *written, *content, *linked;              /* w^r [T + 1, B, R K]; w^W; c; links [T, B, R, K, 2, K_L] */
    REAL *near_words, *words;                                /* [T, B, R, K, word] */
    int32_t *read_slots, *written_slots, *near, *places;     /* of `weights`, ...; where a named slot is in w^r, or -1 */
    REAL *memory, *norms, *last_access, *time, *predecessors, *successors, *log_retained, *precedence; /* [B, ...] */
    const REAL *fresh_memory, *fresh_norms;                  /* at the start of an episode */
    const REAL *d_features, *d_written;                      /* backward only, as all that follow; w^W of the last step */
    REAL *d_gates, *d_parameters, *d_memory, *d_weights, *d_cell, *d_carried, *d_hidden;
} Tape;

#define RETAINED_FLOOR ((REAL)1e-6)
#define TINY ((REAL)(sizeof(REAL) == 8 ? 2.2250738585072014e-308 : 1.17549435e-38))

static int64_t read_count(const Tape *tape) { return tape->heads * tape->reads; }
static int64_t named_count(const Tape *tape) { return tape->reads * (1 + 2 * tape->links); }
static int64_t interface_of(const Tape *tape) { return tape->heads * (tape->word + 4) + tape->word + 2; }
static int begins(const Tape *tape, int64_t at) { return tape->starts && tape->starts[at]; }
static REAL inverse_norm(const REAL *x, int64_t n) { return 1 / (REAL)sqrt(dot(x, x, n) + (REAL)1e-6); }

/* Inserts a number into the `kept` largest, in descending order; `which` contains their indices. */
static inline void take(REAL value, REAL name, REAL *best, REAL *which, int64_t kept) {
    if (!(value > best[kept - 1])) return;
    int64_t at = kept - 1;
    for (; at > 0 && value > best[at - 1]; at--) best[at] = best[at - 1], which[at] = which[at - 1];
    best[at] = value, which[at] = name;
}

/* The strongest links of the sum of two sparse rows; in the second a slot may occur again with weight zero. */
static void strongest(
    const REAL *weights, const REAL *slots, int64_t kept, const REAL *new_weights, const REAL *new_slots, int64_t count,
    REAL *best, REAL *which) {
    REAL sums[kept];
    memcpy(sums, weights, sizeof sums);
    for (int64_t l = 0; l < kept; l++) best[l] = 0, which[l] = -1;
    for (int64_t s = 0; s < count; s++) {
        if (!(new_weights[s] > 0)) continue;
        int64_t same = 0;
        while (same < kept && slots[same] != new_slots[s]) same++;
        if (same < kept)
            sums[same] += new_weights[s];
        else
            take(new_weights[s], new_slots[s], best, which, kept);
    }
    for (int64_t l = 0; l < kept; l++) take(sums[l], slots[l], best, which, kept);
}

/* P at row i: weights from the logarithms. */
static void after(const Tape *tape, int64_t b, int64_t i, REAL *weights, const REAL **slots) {
    const REAL *row = tape->successors + (b * tape->slots + i) * 2 * tape->links, *sums = tape->log_retained + b * tape->slots;
    *slots = row + tape->links;
    for (int64_t l = 0; l < tape->links; l++)
        weights[l] = (*slots)[l] < 0 ? 0 : exp_nonpositive(row[l] + sums[(int64_t)(*slots)[l]]);
}

/* (19), (20) and (11) for w^W at `slots`. */
static void link(const Tape *tape, int64_t b, const int32_t *slots, const REAL *weights, int64_t count) {
    const int64_t kept = tape->links, n = tape->slots;
    REAL *p = tape->precedence + b * 2 * kept, before[kept], before_slots[kept], old[kept], best[kept], which[kept];
    REAL once[count], names[count], fresh[kept], total = 0;
    memcpy(before, p, sizeof before);
    memcpy(before_slots, p + kept, sizeof before);
    for (int64_t s = 0; s < count; s++) {
        int64_t same = 0;
        while (slots[same] != slots[s]) same++;
        once[s] = 0, names[s] = slots[s], total += weights[s], once[same] += weights[s];
    }
    for (int64_t s = 0; s < count; s++) {
        int64_t same = 0;
        while (slots[same] != slots[s]) same++;
        if (same < s) continue;
        REAL *row = tape->predecessors + (b * n + slots[s]) * 2 * kept, left = 1 - once[s];
        for (int64_t l = 0; l < kept; l++) old[l] = left * row[l], fresh[l] = once[s] * before[l];
        strongest(old, row + kept, kept, fresh, before_slots, kept, best, which);
        memcpy(row, best, sizeof best);
        memcpy(row + kept, which, sizeof which);
        tape->log_retained[b * n + slots[s]] += log_positive(left > RETAINED_FLOOR ? left : RETAINED_FLOOR);
    }
    const REAL *linked;
    REAL more[count];
    for (int64_t l = 0; l < kept; l++) {
        if (l && before_slots[l] < 0) continue;
        const int64_t i = before_slots[l] < 0 ? 0 : (int64_t)before_slots[l]; /* with nothing before: as sparse.py */
        after(tape, b, i, old, &linked);
        for (int64_t s = 0; s < count; s++) more[s] = before[l] * once[s];
        strongest(old, linked, kept, more, names, count, best, which);
        REAL *row = tape->successors + (b * n + i) * 2 * kept;
        for (int64_t k = 0; k < kept; k++) {
            const REAL sum = tape->log_retained[b * n + (which[k] < 0 ? 0 : (int64_t)which[k])];
            row[k] = log_positive(best[k] > TINY ? best[k] : TINY) - sum, row[kept + k] = which[k];
        }
    }
    for (int64_t l = 0; l < kept; l++) old[l] = (1 - total) * before[l];
    strongest(old, before_slots, kept, once, names, count, best, which);
    memcpy(p, best, sizeof best);
    memcpy(p + kept, which, sizeof which);
}

/* Resets the state of an entry; the caller resets what is carried from step to step. */
static void reset(const Tape *tape, int64_t b) {
    const int64_t n = tape->slots, kept = tape->links;
    memcpy(tape->memory + b * n * tape->word, tape->fresh_memory, sizeof(REAL) * n * tape->word);
    memcpy(tape->norms + b * n, tape->fresh_norms, sizeof(REAL) * n);
    memset(tape->log_retained + b * n, 0, sizeof(REAL) * n);
    tape->time[b] = 0;
    for (int64_t i = 0; i < n; i++) tape->last_access[b * n + i] = i - n;
    for (int64_t k = 0; k < 2 * kept; k++) tape->precedence[b * 2 * kept + k] = k < kept ? 0 : -1;
    for (int64_t i = 0; i < n; i++)
        for (int64_t k = 0; k < 2 * kept; k++)
            tape->predecessors[(b * n + i) * 2 * kept + k] = tape->successors[(b * n + i) * 2 * kept + k] = k < kept ? 0 : -1;
}

/* One step of an entry, `at` = t B + b: writes, links and reads; `read`: output, the words. */
static void write_and_read(const Tape *tape, int64_t b, int64_t at, REAL *read) {
    const int64_t n = tape->slots, word = tape->word, heads = tape->heads, kept = tape->links, reads = tape->reads;
    const int64_t all = read_count(tape), named = named_count(tape), next = at + tape->batch;
    REAL *keys = tape->parameters + at * interface_of(tape), *strengths = keys + heads * word, *added = strengths + heads;
    REAL *gates = added + word, *modes = gates + 2, *memory = tape->memory + b * n * word, *norms = tape->norms + b * n;
    REAL none[all], scores[heads * n], best[reads], which[reads], scratch[n];
    int32_t nowhere[all];
    memset(none, 0, sizeof none);
    memset(nowhere, 0, sizeof nowhere);
    const REAL *was = begins(tape, at) ? none : tape->weights + at * all;
    const int32_t *old = begins(tape, at) ? nowhere : tape->read_slots + at * all;
    for (int64_t h = 0; h < heads; h++) strengths[h] = 1 + softplus(strengths[h]);
    sigmoid_inplace(gates, 2);
    for (int64_t h = 0; h < heads; h++) {
        REAL ways[3];
        softmax(ways, modes + 3 * h, 1, 3, 3);
        memcpy(modes + 3 * h, ways, sizeof ways);
    }

    /* (5) and (8) */
    REAL *written = tape->written + at * (all + 1), *last_access = tape->last_access + b * n;
    int32_t *slots = tape->written_slots + at * (all + 1), oldest = 0;
    for (int32_t i = 1; i < n; i++) oldest = last_access[i] < last_access[oldest] ? i : oldest;
    for (int64_t k = 0; k < all; k++) written[k] = gates[0] * gates[1] / heads * was[k], slots[k] = old[k];
    written[all] = gates[0] * (1 - gates[1]), slots[all] = oldest;
    memset(memory + oldest * word, 0, sizeof(REAL) * word);
    for (int64_t s = 0; s <= all; s++) axpy(memory + slots[s] * word, written[s], added, word);
    for (int64_t s = 0; s <= all; s++) norms[slots[s]] = inverse_norm(memory + slots[s] * word, word);
    link(tape, b, slots, written, all + 1);

    /* (2) over the K nearest words */
    const int64_t whole = n - n % ROWS;
    for (int64_t i = 0; i < whole; i += ROWS) dots(keys, heads, memory + i * word, word, word, scores + i, n);
    for (int64_t h = 0; h < heads; h++)
        for (int64_t i = whole; i < n; i++) scores[h * n + i] = dot(keys + h * word, memory + i * word, word);
    memset(scratch, 0, sizeof scratch);
    for (int64_t h = 0; h < heads; h++) {
        REAL *restrict score = scores + h * n, *content = tape->content + at * all + h * reads;
        const REAL *key = keys + h * word, key_norm = inverse_norm(key, word);
        for (int64_t i = 0; i < n; i++) score[i] *= norms[i];
        for (int64_t k = 0; k < reads; k++) best[k] = -INFINITY, which[k] = 0;
        for (int64_t i = 0; i < n; i++) take(score[i], i, best, which, reads);
        int32_t *near = tape->near + at * all + h * reads;
        for (int64_t k = 0; k < reads; k++) {
            near[k] = (int32_t)which[k];
            memcpy(tape->near_words + (at * all + h * reads + k) * word, memory + near[k] * word, sizeof(REAL) * word);
            best[k] *= key_norm;
        }
        softmax(content, best, strengths[h], reads, reads);

        /* π_1 b + π_2 c + π_3 f at the candidate slots, each as often as it occurs */
        const REAL *ways = modes + 3 * h, *found_slots;
        REAL *linked = tape->linked + (at * heads + h) * (named - reads), found[kept];
        int32_t name[named], *place = tape->places + (at * heads + h) * named;
        for (int64_t k = 0; k < reads; k++) name[k] = near[k], scratch[near[k]] += ways[1] * content[k];
        for (int64_t k = 0, c = reads; k < reads; k++) {
            const REAL weight = was[h * reads + k];
            const int64_t i = old[h * reads + k];
            for (int64_t side = 0; side < 2; side++, linked += kept) {
                if (side)
                    after(tape, b, i, linked, &found_slots);
                else {
                    const REAL *row = tape->predecessors + (b * n + i) * 2 * kept;
                    memcpy(linked, row, sizeof found);
                    found_slots = row + kept;
                }
                for (int64_t l = 0; l < kept; l++, c++) {
                    name[c] = found_slots[l] < 0 ? 0 : (int32_t)found_slots[l];
                    scratch[name[c]] += weight * ways[2 * side] * linked[l];
                }
            }
        }
        for (int64_t k = 0; k < reads; k++) best[k] = -INFINITY, which[k] = 0;
        for (int64_t c = 0; c < named; c++) {
            take(scratch[name[c]], name[c], best, which, reads);
            scratch[name[c]] = -INFINITY; /* a slot counts once */
        }
        for (int64_t c = 0; c < named; c++) {
            scratch[name[c]] = 0;
            place[c] = -1;
            for (int64_t k = 0; k < reads; k++) place[c] = which[k] == name[c] ? (int32_t)k : place[c];
        }
        REAL *sum = read + h * word; /* (4) */
        memset(sum, 0, sizeof(REAL) * word);
        for (int64_t k = 0; k < reads; k++) {
            const int64_t to = next * all + h * reads + k;
            tape->weights[to] = best[k], tape->read_slots[to] = (int32_t)which[k];
            REAL *copy = tape->words + (at * all + h * reads + k) * word;
            memcpy(copy, memory + (int64_t)which[k] * word, sizeof(REAL) * word);
            axpy(sum, best[k], copy, word);
        }
    }

    /* the last use of every slot where w^W + w^R exceeds δ */
    const REAL *now = tape->weights + next * all, time = ++tape->time[b];
    const int32_t *here = tape->read_slots + next * all;
    for (int64_t s = 0; s <= all; s++) scratch[slots[s]] += written[s];
    for (int64_t k = 0; k < all; k++) scratch[here[k]] += now[k];
    for (int64_t s = 0; s <= all; s++)
        if (scratch[slots[s]] > (REAL)tape->threshold) last_access[slots[s]] = time;
    for (int64_t k = 0; k < all; k++)
        if (scratch[here[k]] > (REAL)tape->threshold) last_access[here[k]] = time;
}

/* Steps first ... last - 1 of the batch entries begin ... end - 1. `gates` contains the input's part of the
   pre-activations, with biases. */
void NAME(forward)(const Tape *tape, int64_t first, int64_t last, int64_t begin, int64_t end) {
    const int64_t rows = end - begin, size = tape->hidden, all = size + tape->heads * tape->word, width = interface_of(tape);
    for (int64_t t = first; t < last; t++) {
        const int64_t at = t * tape->batch + begin, next = at + tape->batch;
        REAL *gates = tape->gates + at * 4 * size, *features = tape->features + at * all, *parameters = tape->parameters + at * width;
        for (int64_t r = 0; r < rows; r++) {
            if (!begins(tape, at + r)) continue;
            reset(tape, begin + r);
            memset(tape->carried + (at + r) * all, 0, sizeof(REAL) * all);
            memset(tape->cells + (at + r) * size, 0, sizeof(REAL) * size);
        }
        product(tape->carried + at * all, all, rows, tape->recurrent, all, 4 * size, gates, 4 * size);
        for (int64_t r = 0; r < rows; r++) {
            lstm_row(
                gates + r * 4 * size, tape->cells + (at + r) * size, tape->cells + (next + r) * size,
                tape->tanh_cells + (at + r) * size, features + r * all, size);
            memcpy(parameters + r * width, tape->bias, sizeof(REAL) * width);
        }
        product(features, all, rows, tape->interface, size, width, parameters, width);
        for (int64_t r = 0; r < rows; r++) write_and_read(tape, begin + r, at + r, features + r * all + size);
        memcpy(tape->carried + next * all, features, sizeof(REAL) * rows * all);
    }
}

/* From the gradients of the words read and of what follows the step; those of memory and w^r become those before it. */
static void undo(const Tape *tape, int64_t b, int64_t at, const REAL *d_read, int last, REAL *d_parameters) {
    const int64_t word = tape->word, heads = tape->heads, reads = tape->reads, kept = tape->links, all = read_count(tape);
    const int64_t next = at + tape->batch, named = named_count(tape);
    const REAL *keys = tape->parameters + at * interface_of(tape), *strengths = keys + heads * word;
    const REAL *added = strengths + heads, *gates = added + word, *modes = gates + 2;
    REAL *d_strengths = d_parameters + heads * word, *d_added = d_strengths + heads, *d_gates = d_added + word;
    REAL *d_modes = d_gates + 2, *d_memory = tape->d_memory + b * tape->slots * word, *d_weights = tape->d_weights + b * all;
    REAL none[all], d_was[all];
    memset(none, 0, sizeof none);
    memset(d_was, 0, sizeof d_was);
    memset(d_parameters, 0, sizeof(REAL) * interface_of(tape));
    const REAL *was = begins(tape, at) ? none : tape->weights + at * all;

    for (int64_t k = 0; k < all; k++) { /* (4) */
        const REAL *d = d_read + k / reads * word;
        d_weights[k] += dot(d, tape->words + (at * all + k) * word, word);
        axpy(d_memory + tape->read_slots[next * all + k] * word, tape->weights[next * all + k], d, word);
    }
    for (int64_t h = 0; h < heads; h++) {
        const REAL *key = keys + h * word, *ways = modes + 3 * h, *content = tape->content + at * all + h * reads;
        const REAL *linked = tape->linked + (at * heads + h) * (named - reads), *d_new = d_weights + h * reads;
        const int32_t *place = tape->places + (at * heads + h) * named;
        REAL d_ways[3] = {0}, d_content[reads];
        for (int64_t k = 0; k < reads; k++) {
            const REAL d = place[k] < 0 ? 0 : d_new[place[k]];
            d_ways[1] += d * content[k], d_content[k] = d * ways[1];
        }
        place += reads;
        for (int64_t k = 0; k < reads; k++)
            for (int64_t side = 0; side < 2; side++, linked += kept, place += kept) {
                REAL sum = 0;
                for (int64_t l = 0; l < kept; l++) sum += place[l] < 0 ? 0 : d_new[place[l]] * linked[l];
                d_ways[2 * side] += was[h * reads + k] * sum, d_was[h * reads + k] += ways[2 * side] * sum;
            }
        const REAL mean = dot(d_ways, ways, 3), along = dot(d_content, content, reads), key_norm = inverse_norm(key, word);
        for (int64_t k = 0; k < 3; k++) d_modes[3 * h + k] = ways[k] * (d_ways[k] - mean);
        REAL d_strength = 0, *d_key = d_parameters + h * word;
        for (int64_t k = 0; k < reads; k++) {
            const REAL *near = tape->near_words + (at * all + h * reads + k) * word, norm = inverse_norm(near, word);
            const REAL cosine = key_norm * norm * dot(key, near, word), d_score = content[k] * (d_content[k] - along);
            const REAL d_cosine = strengths[h] * d_score, pull = d_cosine * key_norm * norm;
            REAL *d_near = d_memory + tape->near[at * all + h * reads + k] * word;
            d_strength += d_score * cosine;
            axpy(d_key, pull, near, word);
            axpy(d_key, -d_cosine * cosine * key_norm * key_norm, key, word);
            axpy(d_near, pull, key, word);
            axpy(d_near, -d_cosine * cosine * norm * norm, near, word);
        }
        d_strengths[h] = d_strength * softplus_derivative(strengths[h] - 1);
    }

    /* (8) and (5) */
    const REAL *written = tape->written + at * (all + 1), alpha = gates[0], gamma = gates[1];
    const int32_t *slots = tape->written_slots + at * (all + 1);
    REAL reused = 0, d_fresh = 0;
    for (int64_t s = 0; s <= all; s++) {
        const REAL *d_row = d_memory + slots[s] * word;
        const REAL d = dot(d_row, added, word) + (last ? tape->d_written[b * (all + 1) + s] : 0);
        axpy(d_added, written[s], d_row, word);
        if (s < all)
            reused += d * was[s] / heads, d_was[s] += alpha * gamma / heads * d;
        else
            d_fresh = d;
    }
    memset(d_memory + slots[all] * word, 0, sizeof(REAL) * word);
    d_gates[0] = (gamma * reused + (1 - gamma) * d_fresh) * alpha * (1 - alpha);
    d_gates[1] = alpha * (reused - d_fresh) * gamma * (1 - gamma);
    memcpy(d_weights, begins(tape, at) ? none : d_was, sizeof d_was);
    if (begins(tape, at)) memset(d_memory, 0, sizeof(REAL) * tape->slots * word);
}

/* Backward pass over all steps, from the last, `last` - 1, to the first. */
void NAME(backward)(const Tape *tape, int64_t first, int64_t last, int64_t begin, int64_t end) {
    const int64_t rows = end - begin, size = tape->hidden, all = size + tape->heads * tape->word, width = interface_of(tape);
    REAL *d_carried = tape->d_carried + begin * all, *d_hidden = tape->d_hidden + begin * size;
    for (int64_t t = last - 1; t >= first; t--) {
        const int64_t at = t * tape->batch + begin;
        REAL *d_gates = tape->d_gates + at * 4 * size, *d_parameters = tape->d_parameters + at * width;
        for (int64_t r = 0; r < rows; r++) {
            axpy(d_carried + r * all, 1, tape->d_features + (at + r) * all, all);
            memcpy(d_hidden + r * size, d_carried + r * all, sizeof(REAL) * size);
            undo(tape, begin + r, at + r, d_carried + r * all + size, t == last - 1, d_parameters + r * width);
        }
        product(d_parameters, width, rows, tape->interface, width, size, d_hidden, size);
        for (int64_t r = 0; r < rows; r++)
            lstm_row_backward(
                tape->gates + (at + r) * 4 * size, tape->cells + (at + r) * size, tape->tanh_cells + (at + r) * size,
                d_hidden + r * size, d_gates + r * 4 * size, tape->d_cell + (begin + r) * size, size);
        memset(d_carried, 0, sizeof(REAL) * rows * all);
        product(d_gates, 4 * size, rows, tape->recurrent, 4 * size, all, d_carried, all);
        for (int64_t r = 0; r < rows; r++) {
            if (!begins(tape, at + r)) continue;
            memset(d_carried + r * all, 0, sizeof(REAL) * all);
            memset(tape->d_cell + (begin + r) * size, 0, sizeof(REAL) * size);
        }
    }
}
