/* The sparse DNC over time, forward and backward; see fast_native.py. Equations and symbols as in memory.py and
   sparse.py. M, its norms, the links and the access times are one copy for the whole sequence, updated in place; the tape
   stores for every step only the few words and slots that it wrote, read and linked. Compiled twice, for REAL float and
   double. */

#include "cells.h"
#include "packed.h"
#include "products.h"

typedef struct {
    int64_t batch, hidden, slots, word, heads, reads, links; /* reads: K; links: K_L */
    double threshold;
    const uint8_t *starts;                      /* [T, B], or NULL */
    const REAL *recurrent, *interface, *bias;   /* packed for the forward or backward pass; the bias is not */
    REAL *gates, *carried, *cells, *tanh_cells; /* [T, B, ...]; carried: hidden state and read vectors before a step */
    REAL *features, *parameters;                /* hidden state and read vectors; k, β, a, α and γ, π */
    REAL *weights, *write_weights, *content,
        *link_weights;           /* w^r [T + 1, B, R K]; w^W; c; links [T, B, R, K, 2, K_L] */
    REAL *nearest_words, *words; /* [T, B, R, K, word] */
    int32_t *read_slots, *write_slots, *nearest,
        *positions; /* of `weights`, write_weights and `content`; index of each candidate slot in w^r, or -1 */
    REAL *memory, *norms, *last_access, *time, *predecessors, *successors, *log_retained, *precedence; /* [B, ...] */
    const REAL *initial_memory, *initial_norms; /* at the start of an episode */
    const REAL *d_features, *d_write_weights; /* this and all below: backward only; d_write_weights: of the last step */
    REAL *d_gates, *d_parameters, *d_memory, *d_weights, *d_cell, *d_carried, *d_hidden;
} Tape;

#define RETAINED_FLOOR ((REAL)1e-6)
#define TINY ((REAL)(sizeof(REAL) == 8 ? 2.2250738585072014e-308 : 1.17549435e-38))

static int64_t read_count(const Tape *tape) { return tape->heads * tape->reads; }
static int64_t candidates_of(const Tape *tape) { return tape->reads * (1 + 2 * tape->links); }
static int64_t interface_of(const Tape *tape) { return tape->heads * (tape->word + 4) + tape->word + 2; }
static int starts_at(const Tape *tape, int64_t at) { return tape->starts && tape->starts[at]; }
static REAL inverse_norm(const REAL *x, int64_t n) { return 1 / (REAL)sqrt(dot(x, x, n) + (REAL)1e-6); }

/* Inserts a value into the `count` largest, which are in descending order, and its index into `indices`. */
static inline void insert_largest(REAL value, REAL index, REAL *best, REAL *indices, int64_t count) {
    if (!(value > best[count - 1])) return;
    int64_t at = count - 1;
    for (; at > 0 && value > best[at - 1]; at--) best[at] = best[at - 1], indices[at] = indices[at - 1];
    best[at] = value, indices[at] = index;
}

/* The strongest links of the sum of two sparse rows. A slot of the second row may occur again with weight zero. */
static void strongest(
    const REAL *weights, const REAL *slots, int64_t links, const REAL *new_weights, const REAL *new_slots,
    int64_t count, REAL *best, REAL *best_slots) {
    REAL sums[links];
    memcpy(sums, weights, sizeof sums);
    for (int64_t l = 0; l < links; l++) best[l] = 0, best_slots[l] = -1;
    for (int64_t s = 0; s < count; s++) {
        if (!(new_weights[s] > 0)) continue;
        int64_t same = 0;
        while (same < links && slots[same] != new_slots[s]) same++;
        if (same < links)
            sums[same] += new_weights[s];
        else
            insert_largest(new_weights[s], new_slots[s], best, best_slots, links);
    }
    for (int64_t l = 0; l < links; l++) insert_largest(sums[l], slots[l], best, best_slots, links);
}

/* Row i of P: slots, and weights from the stored logarithms. */
static void successors_of(const Tape *tape, int64_t b, int64_t i, REAL *weights, const REAL **slots) {
    const REAL *row = tape->successors + (b * tape->slots + i) * 2 * tape->links,
               *sums = tape->log_retained + b * tape->slots;
    *slots = row + tape->links;
    for (int64_t l = 0; l < tape->links; l++)
        weights[l] = (*slots)[l] < 0 ? 0 : exp_nonpositive(row[l] + sums[(int64_t)(*slots)[l]]);
}

/* Eq. (19), (20) and (11) for the write weights `weights` at `slots`. */
static void update_links(const Tape *tape, int64_t b, const int32_t *slots, const REAL *weights, int64_t count) {
    const int64_t links = tape->links, n = tape->slots;
    REAL *p = tape->precedence + b * 2 * links, p_weights[links], p_slots[links], old_weights[links], best[links],
         best_slots[links];
    REAL slot_weights[count], slot_ids[count], new_links[links], write_sum = 0;
    memcpy(p_weights, p, sizeof p_weights);
    memcpy(p_slots, p + links, sizeof p_weights);
    for (int64_t s = 0; s < count; s++) {
        int64_t same = 0;
        while (slots[same] != slots[s]) same++;
        slot_weights[s] = 0, slot_ids[s] = slots[s], write_sum += weights[s], slot_weights[same] += weights[s];
    }
    for (int64_t s = 0; s < count; s++) {
        int64_t same = 0;
        while (slots[same] != slots[s]) same++;
        if (same < s) continue;
        REAL *row = tape->predecessors + (b * n + slots[s]) * 2 * links, remaining = 1 - slot_weights[s];
        for (int64_t l = 0; l < links; l++)
            old_weights[l] = remaining * row[l], new_links[l] = slot_weights[s] * p_weights[l];
        strongest(old_weights, row + links, links, new_links, p_slots, links, best, best_slots);
        memcpy(row, best, sizeof best);
        memcpy(row + links, best_slots, sizeof best_slots);
        tape->log_retained[b * n + slots[s]] += log_positive(remaining > RETAINED_FLOOR ? remaining : RETAINED_FLOOR);
    }
    const REAL *link_slots;
    REAL added[count];
    for (int64_t l = 0; l < links; l++) {
        if (l && p_slots[l] < 0) continue;
        const int64_t i = p_slots[l] < 0 ? 0 : (int64_t)p_slots[l]; /* an empty p: as in sparse.py */
        successors_of(tape, b, i, old_weights, &link_slots);
        for (int64_t s = 0; s < count; s++) added[s] = p_weights[l] * slot_weights[s];
        strongest(old_weights, link_slots, links, added, slot_ids, count, best, best_slots);
        REAL *row = tape->successors + (b * n + i) * 2 * links;
        for (int64_t k = 0; k < links; k++) {
            const REAL sum = tape->log_retained[b * n + (best_slots[k] < 0 ? 0 : (int64_t)best_slots[k])];
            row[k] = log_positive(best[k] > TINY ? best[k] : TINY) - sum, row[links + k] = best_slots[k];
        }
    }
    for (int64_t l = 0; l < links; l++) old_weights[l] = (1 - write_sum) * p_weights[l];
    strongest(old_weights, p_slots, links, slot_weights, slot_ids, count, best, best_slots);
    memcpy(p, best, sizeof best);
    memcpy(p + links, best_slots, sizeof best_slots);
}

/* Resets memory and links of an entry; the caller resets hidden state, cell and read vectors. */
static void reset(const Tape *tape, int64_t b) {
    const int64_t n = tape->slots, links = tape->links;
    memcpy(tape->memory + b * n * tape->word, tape->initial_memory, sizeof(REAL) * n * tape->word);
    memcpy(tape->norms + b * n, tape->initial_norms, sizeof(REAL) * n);
    memset(tape->log_retained + b * n, 0, sizeof(REAL) * n);
    tape->time[b] = 0;
    for (int64_t i = 0; i < n; i++) tape->last_access[b * n + i] = i - n;
    for (int64_t k = 0; k < 2 * links; k++) tape->precedence[b * 2 * links + k] = k < links ? 0 : -1;
    for (int64_t i = 0; i < n; i++)
        for (int64_t k = 0; k < 2 * links; k++)
            tape->predecessors[(b * n + i) * 2 * links + k] = tape->successors[(b * n + i) * 2 * links + k] =
                k < links ? 0 : -1;
}

/* One step of an entry, `at` = t B + b: writes, links and reads; `read`: output, the read vectors. */
static void write_and_read(const Tape *tape, int64_t b, int64_t at, REAL *read) {
    const int64_t n = tape->slots, word = tape->word, heads = tape->heads, links = tape->links, reads = tape->reads;
    const int64_t n_reads = read_count(tape), candidate_count = candidates_of(tape), next = at + tape->batch;
    REAL *keys = tape->parameters + at * interface_of(tape), *strengths = keys + heads * word,
         *write_word = strengths + heads;
    REAL *gates = write_word + word, *modes = gates + 2, *memory = tape->memory + b * n * word,
         *norms = tape->norms + b * n;
    REAL zero_weights[n_reads], scores[heads * n], best[reads], indices[reads], scratch[n];
    int32_t zero_slots[n_reads];
    memset(zero_weights, 0, sizeof zero_weights);
    memset(zero_slots, 0, sizeof zero_slots);
    const REAL *old_weights = starts_at(tape, at) ? zero_weights : tape->weights + at * n_reads;
    const int32_t *old_slots = starts_at(tape, at) ? zero_slots : tape->read_slots + at * n_reads;
    for (int64_t h = 0; h < heads; h++) strengths[h] = 1 + softplus(strengths[h]);
    sigmoid_inplace(gates, 2);
    for (int64_t h = 0; h < heads; h++) {
        REAL pi[3];
        softmax(pi, modes + 3 * h, 1, 3, 3);
        memcpy(modes + 3 * h, pi, sizeof pi);
    }

    /* (5) and (8) */
    REAL *write_weights = tape->write_weights + at * (n_reads + 1), *last_access = tape->last_access + b * n;
    int32_t *write_slots = tape->write_slots + at * (n_reads + 1), oldest = 0;
    for (int32_t i = 1; i < n; i++) oldest = last_access[i] < last_access[oldest] ? i : oldest;
    for (int64_t k = 0; k < n_reads; k++)
        write_weights[k] = gates[0] * gates[1] / heads * old_weights[k], write_slots[k] = old_slots[k];
    write_weights[n_reads] = gates[0] * (1 - gates[1]), write_slots[n_reads] = oldest;
    memset(memory + oldest * word, 0, sizeof(REAL) * word);
    for (int64_t s = 0; s <= n_reads; s++) axpy(memory + write_slots[s] * word, write_weights[s], write_word, word);
    for (int64_t s = 0; s <= n_reads; s++) norms[write_slots[s]] = inverse_norm(memory + write_slots[s] * word, word);
    update_links(tape, b, write_slots, write_weights, n_reads + 1);

    /* (2) over the K nearest words */
    const int64_t whole_rows = n - n % ROWS;
    for (int64_t i = 0; i < whole_rows; i += ROWS) dots(keys, heads, memory + i * word, word, word, scores + i, n);
    for (int64_t h = 0; h < heads; h++)
        for (int64_t i = whole_rows; i < n; i++) scores[h * n + i] = dot(keys + h * word, memory + i * word, word);
    memset(scratch, 0, sizeof scratch);
    for (int64_t h = 0; h < heads; h++) {
        REAL *restrict score = scores + h * n, *content = tape->content + at * n_reads + h * reads;
        const REAL *key = keys + h * word, key_norm = inverse_norm(key, word);
        for (int64_t i = 0; i < n; i++) score[i] *= norms[i];
        for (int64_t k = 0; k < reads; k++) best[k] = -INFINITY, indices[k] = 0;
        for (int64_t i = 0; i < n; i++) insert_largest(score[i], i, best, indices, reads);
        int32_t *nearest = tape->nearest + at * n_reads + h * reads;
        for (int64_t k = 0; k < reads; k++) {
            nearest[k] = (int32_t)indices[k];
            memcpy(
                tape->nearest_words + (at * n_reads + h * reads + k) * word, memory + nearest[k] * word,
                sizeof(REAL) * word);
            best[k] *= key_norm;
        }
        softmax(content, best, strengths[h], reads, reads);

        /* π_1 b + π_2 c + π_3 f at the candidate slots, which may occur several times */
        const REAL *pi = modes + 3 * h, *link_slots;
        REAL *link_weights = tape->link_weights + (at * heads + h) * (candidate_count - reads);
        int32_t candidate[candidate_count], *position = tape->positions + (at * heads + h) * candidate_count;
        for (int64_t k = 0; k < reads; k++) candidate[k] = nearest[k], scratch[nearest[k]] += pi[1] * content[k];
        for (int64_t k = 0, c = reads; k < reads; k++) {
            const REAL weight = old_weights[h * reads + k];
            const int64_t i = old_slots[h * reads + k];
            for (int64_t is_successor = 0; is_successor < 2; is_successor++, link_weights += links) {
                if (is_successor)
                    successors_of(tape, b, i, link_weights, &link_slots);
                else {
                    const REAL *row = tape->predecessors + (b * n + i) * 2 * links;
                    memcpy(link_weights, row, sizeof(REAL) * links);
                    link_slots = row + links;
                }
                for (int64_t l = 0; l < links; l++, c++) {
                    candidate[c] = link_slots[l] < 0 ? 0 : (int32_t)link_slots[l];
                    scratch[candidate[c]] += weight * pi[2 * is_successor] * link_weights[l];
                }
            }
        }
        for (int64_t k = 0; k < reads; k++) best[k] = -INFINITY, indices[k] = 0;
        for (int64_t c = 0; c < candidate_count; c++) {
            insert_largest(scratch[candidate[c]], candidate[c], best, indices, reads);
            scratch[candidate[c]] = -INFINITY; /* a slot counts once */
        }
        for (int64_t c = 0; c < candidate_count; c++) {
            scratch[candidate[c]] = 0;
            position[c] = -1;
            for (int64_t k = 0; k < reads; k++) position[c] = indices[k] == candidate[c] ? (int32_t)k : position[c];
        }
        REAL *sum = read + h * word; /* (4) */
        memset(sum, 0, sizeof(REAL) * word);
        for (int64_t k = 0; k < reads; k++) {
            const int64_t to = next * n_reads + h * reads + k;
            tape->weights[to] = best[k], tape->read_slots[to] = (int32_t)indices[k];
            REAL *copy = tape->words + (at * n_reads + h * reads + k) * word;
            memcpy(copy, memory + (int64_t)indices[k] * word, sizeof(REAL) * word);
            axpy(sum, best[k], copy, word);
        }
    }

    /* the last use of every slot where w^W + w^R exceeds δ */
    const REAL *new_weights = tape->weights + next * n_reads, time = ++tape->time[b];
    const int32_t *new_slots = tape->read_slots + next * n_reads;
    for (int64_t s = 0; s <= n_reads; s++) scratch[write_slots[s]] += write_weights[s];
    for (int64_t k = 0; k < n_reads; k++) scratch[new_slots[k]] += new_weights[k];
    for (int64_t s = 0; s <= n_reads; s++)
        if (scratch[write_slots[s]] > (REAL)tape->threshold) last_access[write_slots[s]] = time;
    for (int64_t k = 0; k < n_reads; k++)
        if (scratch[new_slots[k]] > (REAL)tape->threshold) last_access[new_slots[k]] = time;
}

/* Steps first ... last - 1 of the batch entries begin ... end - 1. `gates` contains the input's part of the
   pre-activations, with biases. */
void NAME(forward)(const Tape *tape, int64_t first, int64_t last, int64_t begin, int64_t end) {
    const int64_t rows = end - begin, size = tape->hidden, carried_size = size + tape->heads * tape->word,
                  width = interface_of(tape);
    for (int64_t t = first; t < last; t++) {
        const int64_t at = t * tape->batch + begin, next = at + tape->batch;
        REAL *gates = tape->gates + at * 4 * size, *features = tape->features + at * carried_size,
             *parameters = tape->parameters + at * width;
        for (int64_t r = 0; r < rows; r++) {
            if (!starts_at(tape, at + r)) continue;
            reset(tape, begin + r);
            memset(tape->carried + (at + r) * carried_size, 0, sizeof(REAL) * carried_size);
            memset(tape->cells + (at + r) * size, 0, sizeof(REAL) * size);
        }
        product(
            tape->carried + at * carried_size, carried_size, rows, tape->recurrent, carried_size, 4 * size, gates,
            4 * size);
        for (int64_t r = 0; r < rows; r++) {
            lstm_row(
                gates + r * 4 * size, tape->cells + (at + r) * size, tape->cells + (next + r) * size,
                tape->tanh_cells + (at + r) * size, features + r * carried_size, size);
            memcpy(parameters + r * width, tape->bias, sizeof(REAL) * width);
        }
        product(features, carried_size, rows, tape->interface, size, width, parameters, width);
        for (int64_t r = 0; r < rows; r++) write_and_read(tape, begin + r, at + r, features + r * carried_size + size);
        memcpy(tape->carried + next * carried_size, features, sizeof(REAL) * rows * carried_size);
    }
}

/* Backward pass of `write_and_read`: d_memory and d_weights of the state after the step are overwritten by those of the
   state before it. */
static void
write_and_read_backward(const Tape *tape, int64_t b, int64_t at, const REAL *d_read, int last, REAL *d_parameters) {
    const int64_t word = tape->word, heads = tape->heads, reads = tape->reads, links = tape->links,
                  n_reads = read_count(tape);
    const int64_t next = at + tape->batch, candidate_count = candidates_of(tape);
    const REAL *keys = tape->parameters + at * interface_of(tape), *strengths = keys + heads * word;
    const REAL *write_word = strengths + heads, *gates = write_word + word, *modes = gates + 2;
    REAL *d_strengths = d_parameters + heads * word, *d_write_word = d_strengths + heads,
         *d_gates = d_write_word + word;
    REAL *d_modes = d_gates + 2, *d_memory = tape->d_memory + b * tape->slots * word,
         *d_weights = tape->d_weights + b * n_reads;
    REAL zero_weights[n_reads], d_old_weights[n_reads];
    memset(zero_weights, 0, sizeof zero_weights);
    memset(d_old_weights, 0, sizeof d_old_weights);
    memset(d_parameters, 0, sizeof(REAL) * interface_of(tape));
    const REAL *old_weights = starts_at(tape, at) ? zero_weights : tape->weights + at * n_reads;

    for (int64_t k = 0; k < n_reads; k++) { /* (4) */
        const REAL *d = d_read + k / reads * word;
        d_weights[k] += dot(d, tape->words + (at * n_reads + k) * word, word);
        axpy(d_memory + tape->read_slots[next * n_reads + k] * word, tape->weights[next * n_reads + k], d, word);
    }
    for (int64_t h = 0; h < heads; h++) {
        const REAL *key = keys + h * word, *pi = modes + 3 * h, *content = tape->content + at * n_reads + h * reads;
        const REAL *link_weights = tape->link_weights + (at * heads + h) * (candidate_count - reads),
                   *d_new_weights = d_weights + h * reads;
        const int32_t *position = tape->positions + (at * heads + h) * candidate_count;
        REAL d_pi[3] = {0}, d_content[reads];
        for (int64_t k = 0; k < reads; k++) {
            const REAL d = position[k] < 0 ? 0 : d_new_weights[position[k]];
            d_pi[1] += d * content[k], d_content[k] = d * pi[1];
        }
        position += reads;
        for (int64_t k = 0; k < reads; k++)
            for (int64_t is_successor = 0; is_successor < 2; is_successor++, link_weights += links, position += links) {
                REAL sum = 0;
                for (int64_t l = 0; l < links; l++)
                    sum += position[l] < 0 ? 0 : d_new_weights[position[l]] * link_weights[l];
                d_pi[2 * is_successor] += old_weights[h * reads + k] * sum,
                    d_old_weights[h * reads + k] += pi[2 * is_successor] * sum;
            }
        const REAL mean = dot(d_pi, pi, 3), inner_product = dot(d_content, content, reads),
                   key_norm = inverse_norm(key, word);
        for (int64_t k = 0; k < 3; k++) d_modes[3 * h + k] = pi[k] * (d_pi[k] - mean);
        REAL d_strength = 0, *d_key = d_parameters + h * word;
        for (int64_t k = 0; k < reads; k++) {
            const REAL *nearest = tape->nearest_words + (at * n_reads + h * reads + k) * word,
                       norm = inverse_norm(nearest, word);
            const REAL cosine = key_norm * norm * dot(key, nearest, word),
                       d_score = content[k] * (d_content[k] - inner_product);
            const REAL d_cosine = strengths[h] * d_score, d_dot = d_cosine * key_norm * norm;
            REAL *d_nearest = d_memory + tape->nearest[at * n_reads + h * reads + k] * word;
            d_strength += d_score * cosine;
            axpy(d_key, d_dot, nearest, word);
            axpy(d_key, -d_cosine * cosine * key_norm * key_norm, key, word);
            axpy(d_nearest, d_dot, key, word);
            axpy(d_nearest, -d_cosine * cosine * norm * norm, nearest, word);
        }
        d_strengths[h] = d_strength * softplus_derivative(strengths[h] - 1);
    }

    /* (8) and (5) */
    const REAL *write_weights = tape->write_weights + at * (n_reads + 1), alpha = gates[0], gamma = gates[1];
    const int32_t *write_slots = tape->write_slots + at * (n_reads + 1);
    REAL d_reuse = 0, d_oldest = 0;
    for (int64_t s = 0; s <= n_reads; s++) {
        const REAL *d_row = d_memory + write_slots[s] * word;
        const REAL d = dot(d_row, write_word, word) + (last ? tape->d_write_weights[b * (n_reads + 1) + s] : 0);
        axpy(d_write_word, write_weights[s], d_row, word);
        if (s < n_reads)
            d_reuse += d * old_weights[s] / heads, d_old_weights[s] += alpha * gamma / heads * d;
        else
            d_oldest = d;
    }
    memset(d_memory + write_slots[n_reads] * word, 0, sizeof(REAL) * word);
    d_gates[0] = (gamma * d_reuse + (1 - gamma) * d_oldest) * alpha * (1 - alpha);
    d_gates[1] = alpha * (d_reuse - d_oldest) * gamma * (1 - gamma);
    memcpy(d_weights, starts_at(tape, at) ? zero_weights : d_old_weights, sizeof d_old_weights);
    if (starts_at(tape, at)) memset(d_memory, 0, sizeof(REAL) * tape->slots * word);
}

/* Backward pass over all steps, from the last, `last` - 1, to the first. */
void NAME(backward)(const Tape *tape, int64_t first, int64_t last, int64_t begin, int64_t end) {
    const int64_t rows = end - begin, size = tape->hidden, carried_size = size + tape->heads * tape->word,
                  width = interface_of(tape);
    REAL *d_carried = tape->d_carried + begin * carried_size, *d_hidden = tape->d_hidden + begin * size;
    for (int64_t t = last - 1; t >= first; t--) {
        const int64_t at = t * tape->batch + begin;
        REAL *d_gates = tape->d_gates + at * 4 * size, *d_parameters = tape->d_parameters + at * width;
        for (int64_t r = 0; r < rows; r++) {
            axpy(d_carried + r * carried_size, 1, tape->d_features + (at + r) * carried_size, carried_size);
            memcpy(d_hidden + r * size, d_carried + r * carried_size, sizeof(REAL) * size);
            write_and_read_backward(
                tape, begin + r, at + r, d_carried + r * carried_size + size, t == last - 1, d_parameters + r * width);
        }
        product(d_parameters, width, rows, tape->interface, width, size, d_hidden, size);
        for (int64_t r = 0; r < rows; r++)
            lstm_row_backward(
                tape->gates + (at + r) * 4 * size, tape->cells + (at + r) * size, tape->tanh_cells + (at + r) * size,
                d_hidden + r * size, d_gates + r * 4 * size, tape->d_cell + (begin + r) * size, size);
        memset(d_carried, 0, sizeof(REAL) * rows * carried_size);
        product(d_gates, 4 * size, rows, tape->recurrent, 4 * size, carried_size, d_carried, carried_size);
        for (int64_t r = 0; r < rows; r++) {
            if (!starts_at(tape, at + r)) continue;
            memset(d_carried + r * carried_size, 0, sizeof(REAL) * carried_size);
            memset(tape->d_cell + (begin + r) * size, 0, sizeof(REAL) * size);
        }
    }
}
