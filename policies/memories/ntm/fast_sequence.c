/* The neural Turing machine over time, forward and backward; see fast_native.py. Equations and symbols as in memory.py.

   A memory is stored transposed, [word, padded], so that operations are loops over slots, padded with zeros to whole
   SIMD vectors. Read heads come before write heads. A call processes a block of environments over several steps, so
   that their memories and the weights stay in the cache. Compiled twice, for REAL float and double. */

#include "activations.h"
#include "cells.h"
#include "packed.h"

#define MAX_LAYERS 8
#define NORM_EPS ((REAL)1e-6)
#define WEIGHT_FLOOR ((REAL)1e-16)

typedef struct {
    int64_t batch, layers, hidden, lstm, slots, padded, word, reads, writes, reach, read_first, tanh_keys;
    const uint8_t *starts;                                         /* [T, B] or NULL: where an episode starts with a step */
    const REAL *weights[MAX_LAYERS], *biases[MAX_LAYERS];          /* of the controller, packed; the first bias is unused */
    const REAL *interface_weight, *interface_bias;                 /* packed; as it is */
    REAL *gates[MAX_LAYERS], *inputs[MAX_LAYERS];                  /* [T, B, 4 H or H], [T + 1, B, below + H], see `below` */
    REAL *cells[MAX_LAYERS], *tanh_cells[MAX_LAYERS];                /* [T + 1, B, H], [T, B, H] */
    REAL *features, *parameters;                                   /* [T, B, H + reads], [T, B, interface] */
    REAL *memory, *norms, *w;                                      /* [T + 1, B, word, padded], .. padded, .. heads, padded */
    REAL *by_content, *cosines, *moved, *logs;                     /* [T, B, heads, padded] */
    const REAL *fresh_inputs[MAX_LAYERS], *fresh_cells[MAX_LAYERS]; /* the first state of an episode */
    const REAL *fresh_memory, *fresh_norms, *fresh_w;
    const REAL *d_features;                                        /* backward only, as all that follow */
    REAL *d_gates[MAX_LAYERS], *d_parameters;                      /* of some steps */
    REAL *d_inputs[MAX_LAYERS], *d_cells[MAX_LAYERS], *d_memory, *d_w, *d_hidden; /* of the state, [B, ...], and scratch */
    REAL *d_fresh_inputs[MAX_LAYERS], *d_fresh_cells[MAX_LAYERS], *d_fresh_memory, *d_fresh_w; /* [B, ...], summed up */
} Tape;

/* A row of `inputs` is the input of a layer's product: the last read-outs (or the layer below) and, with an LSTM, the
   layer's hidden state. */
static int64_t below(const Tape *tape, int64_t l) { return l ? tape->hidden : tape->reads * tape->word; }
static int64_t own(const Tape *tape) { return tape->lstm ? tape->hidden : 0; }
static int64_t gates_of(const Tape *tape) { return tape->lstm ? 4 * tape->hidden : tape->hidden; }
static int64_t heads_of(const Tape *tape) { return tape->reads + tape->writes; }
/* Of a head: k, β, g, s, γ */
static int64_t parameters_of(const Tape *tape) { return tape->word + 2 * tape->reach + 4; }
static int64_t interface_of(const Tape *tape) {
    return heads_of(tape) * parameters_of(tape) + 2 * tape->writes * tape->word;
}
static int starts_at(const Tape *tape, int64_t at) { return tape->starts && tape->starts[at]; }

/* The memory, its norms and the weights before step t of entry b, at = t B + b. */
typedef struct {
    const REAL *memory, *norms, *w;
} Before;

static Before before(const Tape *tape, int64_t at) {
    const int64_t n = tape->padded;
    if (starts_at(tape, at)) return (Before){tape->fresh_memory, tape->fresh_norms, tape->fresh_w};
    return (Before){tape->memory + at * tape->word * n, tape->norms + at * n, tape->w + at * heads_of(tape) * n};
}

/* 1 / |M(i)| of the slots */
static void norms_of(const REAL *restrict memory, REAL *restrict norms, int64_t word, int64_t n) {
    for (int64_t i = 0; i < n; i++) norms[i] = NORM_EPS;
    for (int64_t m = 0; m < word; m++)
        for (int64_t i = 0; i < n; i++) norms[i] += memory[m * n + i] * memory[m * n + i];
    for (int64_t i = 0; i < n; i++) norms[i] = 1 / (REAL)sqrt(norms[i]);
}

void NAME(norms)(const REAL *memory, REAL *norms, int64_t count, int64_t word, int64_t n) {
    for (int64_t b = 0; b < count; b++) norms_of(memory + b * word * n, norms + b * n, word, n);
}

static REAL inverse_norm(const REAL *key, int64_t word) {
    REAL sum = NORM_EPS;
    for (int64_t m = 0; m < word; m++) sum += key[m] * key[m];
    return 1 / (REAL)sqrt(sum);
}

/* w^g, eq. (7), in a ring: slots -reach ... N + reach - 1, then zeros. */
static void gated(
    const Tape *tape, const REAL *restrict by_content, const REAL *restrict was, REAL gate, REAL *restrict ring) {
    const int64_t n = tape->slots, reach = tape->reach;
    for (int64_t i = 0; i < tape->padded; i++) ring[reach + i] = gate * by_content[i] + (1 - gate) * was[i];
    for (int64_t i = n; i < tape->padded + reach; i++) ring[reach + i] = 0;
    for (int64_t j = 0; j < reach; j++) ring[j] = ring[n + j], ring[reach + n + j] = ring[reach + j];
}

/* §3.3: the weights of head `head` in `memory`, from its parameters as the controller emits them, which become k, β ... γ. */
static void address(const Tape *tape, int64_t at, int64_t head, const Before *from, const REAL *memory, const REAL *norms) {
    const int64_t word = tape->word, n = tape->slots, padded = tape->padded, moves = 2 * tape->reach + 1;
    const int64_t heads = heads_of(tape), here = (at * heads + head) * padded;
    REAL *key = tape->parameters + at * interface_of(tape) + head * parameters_of(tape), *rest = key + word;
    REAL *restrict cosine = tape->cosines + here, *restrict moved = tape->moved + here, *restrict logs = tape->logs + here;
    REAL ring[padded + 2 * tape->reach], shift[moves], *w = tape->w + ((at + tape->batch) * heads + head) * padded;

    if (tape->tanh_keys) tanh_inplace(key, word);
    rest[0] = softplus(rest[0]);
    sigmoid_inplace(rest + 1, 1);
    memcpy(shift, rest + 2, sizeof shift);
    softmax(rest + 2, shift, 1, moves, moves);
    rest[2 + moves] = 1 + softplus(rest[2 + moves]);

    const REAL key_norm = inverse_norm(key, word); /* eq. (5), (6) */
    memset(cosine, 0, sizeof(REAL) * padded);
    for (int64_t m = 0; m < word; m++)
        for (int64_t i = 0; i < padded; i++) cosine[i] += key_norm * key[m] * memory[m * padded + i];
    for (int64_t i = 0; i < padded; i++) cosine[i] *= norms[i];
    softmax(tape->by_content + here, cosine, rest[0], n, padded);
    gated(tape, tape->by_content + here, from->w + head * padded, rest[1], ring);
    memset(moved, 0, sizeof(REAL) * padded); /* eq. (8) */
    for (int64_t j = 0; j < moves; j++)
        for (int64_t i = 0; i < padded; i++) moved[i] += ring[i + j] * rest[2 + moves - 1 - j];
    for (int64_t i = 0; i < padded; i++) logs[i] = log_positive(moved[i] + WEIGHT_FLOOR);
    softmax(w, logs, rest[2 + moves], n, padded); /* eq. (9) */
}

/* Eq. (3), (4) */
static void write(const Tape *tape, int64_t at, const REAL *old) {
    const int64_t word = tape->word, n = tape->padded, heads = heads_of(tape), after = at + tape->batch;
    const REAL *erase = tape->parameters + at * interface_of(tape) + heads * parameters_of(tape);
    const REAL *add = erase + tape->writes * word, *w = tape->w + (after * heads + tape->reads) * n;
    for (int64_t m = 0; m < word; m++) {
        REAL *restrict row = tape->memory + (after * word + m) * n;
        memcpy(row, old + m * n, sizeof(REAL) * n);
        for (int64_t h = 0; h < tape->writes; h++)
            for (int64_t i = 0; i < n; i++) row[i] *= 1 - w[h * n + i] * erase[h * word + m];
        for (int64_t h = 0; h < tape->writes; h++)
            for (int64_t i = 0; i < n; i++) row[i] += w[h * n + i] * add[h * word + m];
    }
    norms_of(tape->memory + after * word * n, tape->norms + after * n, word, n);
}

static void write_and_read(const Tape *tape, int64_t at, REAL *read) {
    const int64_t word = tape->word, n = tape->padded, heads = heads_of(tape), after = at + tape->batch;
    const Before from = before(tape, at);
    REAL *erase = tape->parameters + at * interface_of(tape) + heads * parameters_of(tape);
    sigmoid_inplace(erase, tape->writes * word);
    if (tape->tanh_keys) tanh_inplace(erase + tape->writes * word, tape->writes * word);
    for (int64_t h = tape->reads; h < heads; h++) address(tape, at, h, &from, from.memory, from.norms);
    write(tape, at, from.memory);
    const REAL *memory = tape->read_first ? from.memory : tape->memory + after * word * n;
    const REAL *norms = tape->read_first ? from.norms : tape->norms + after * n;
    for (int64_t h = 0; h < tape->reads; h++) {
        address(tape, at, h, &from, memory, norms);
        const REAL *w = tape->w + (after * heads + h) * n;
        for (int64_t m = 0; m < word; m++) { /* eq. (2) */
            REAL sum = 0;
            for (int64_t i = 0; i < n; i++) sum += w[i] * memory[m * n + i];
            read[h * word + m] = sum;
        }
    }
}

/* Steps first ... last - 1 of the batch entries begin ... end - 1. The first layer's gates contain the input's part of
   the pre-activations, with biases. */
void NAME(forward)(const Tape *tape, int64_t first, int64_t last, int64_t begin, int64_t end) {
    const int64_t rows = end - begin, size = tape->hidden, reads = tape->reads * tape->word, width = gates_of(tape);
    const int64_t features = size + reads, interface = interface_of(tape), row = sizeof(REAL) * size;
    for (int64_t t = first; t < last; t++) {
        const int64_t at = t * tape->batch + begin, next = at + tape->batch;
        for (int64_t l = 0; l < tape->layers; l++) {
            const int64_t in = below(tape, l), all = in + own(tape);
            REAL *inputs = tape->inputs[l] + at * all, *gates = tape->gates[l] + at * width;
            for (int64_t r = 0; r < rows; r++) {
                if (starts_at(tape, at + r)) {
                    const int64_t kept = l ? in : 0; /* the layer below has already said what it says now */
                    memcpy(inputs + r * all + kept, tape->fresh_inputs[l] + kept, sizeof(REAL) * (all - kept));
                    if (tape->lstm) memcpy(tape->cells[l] + (at + r) * size, tape->fresh_cells[l], row);
                }
                if (l) memcpy(gates + r * width, tape->biases[l], sizeof(REAL) * width);
            }
            product(inputs, all, rows, tape->weights[l], all, width, gates, width);
            const int top = l + 1 == tape->layers;
            const int64_t stride = top ? features : size + own(tape);
            REAL *hidden = (top ? tape->features : tape->inputs[l + 1]) + at * stride;
            for (int64_t r = 0; r < rows; r++, hidden += stride, gates += width) {
                if (tape->lstm) {
                    const REAL *was = tape->cells[l] + (at + r) * size;
                    lstm_row(
                        gates, was, tape->cells[l] + (next + r) * size, tape->tanh_cells[l] + (at + r) * size, hidden, size);
                    memcpy(tape->inputs[l] + (next + r) * all + in, hidden, row);
                } else {
                    tanh_inplace(gates, size);
                    memcpy(hidden, gates, row);
                }
            }
        }
        REAL *parameters = tape->parameters + at * interface, *said = tape->features + at * features;
        for (int64_t r = 0; r < rows; r++)
            memcpy(parameters + r * interface, tape->interface_bias, sizeof(REAL) * interface);
        product(said, features, rows, tape->interface_weight, size, interface, parameters, interface);
        for (int64_t r = 0; r < rows; r++) {
            REAL *read = said + r * features + size;
            write_and_read(tape, at + r, read);
            memcpy(tape->inputs[0] + (next + r) * (reads + own(tape)), read, sizeof(REAL) * reads);
        }
    }
}

/* Backward pass of `address`. d_w becomes that of w_{t-1} from that of w; d_key that of the head's parameters as the
   controller emits them; `pull` and `shrink` say what the memory gets: pull k - shrink M, of which `shrink` is added
   to. */
static void address_back(
    const Tape *tape, int64_t at, int64_t head, const Before *from, const REAL *memory, const REAL *norms,
    REAL *restrict d_w, REAL *restrict d_key, REAL *restrict pull, REAL *restrict shrink) {
    const int64_t word = tape->word, n = tape->slots, padded = tape->padded, reach = tape->reach, moves = 2 * reach + 1;
    const int64_t heads = heads_of(tape), here = (at * heads + head) * padded;
    const REAL *key = tape->parameters + at * interface_of(tape) + head * parameters_of(tape), *rest = key + word;
    const REAL *restrict cosine = tape->cosines + here, *restrict moved = tape->moved + here;
    const REAL *restrict logs = tape->logs + here, *restrict content = tape->by_content + here;
    const REAL *restrict w = tape->w + ((at + tape->batch) * heads + head) * padded, *restrict was = from->w + head * padded;
    REAL ring[padded + 2 * reach], d_ring[padded + 2 * reach], d_moved[padded], *d_rest = d_key + word;
    const REAL strength = rest[0], gate = rest[1], *shift = rest + 2, power = rest[2 + moves];

    REAL along = 0, d_power = 0;
    for (int64_t i = 0; i < padded; i++) along += d_w[i] * w[i];
    for (int64_t i = 0; i < padded; i++) d_moved[i] = w[i] * (d_w[i] - along);
    for (int64_t i = 0; i < padded; i++) d_power += d_moved[i] * logs[i];
    for (int64_t i = 0; i < padded; i++) d_moved[i] *= power / (moved[i] + WEIGHT_FLOOR);
    d_rest[2 + moves] = d_power * softplus_derivative(power - 1);

    gated(tape, content, was, gate, ring);
    memset(d_ring, 0, sizeof d_ring);
    along = 0;
    for (int64_t j = 0; j < moves; j++) {
        REAL sum = 0;
        for (int64_t i = 0; i < padded; i++) sum += ring[i + j] * d_moved[i];
        for (int64_t i = 0; i < padded; i++) d_ring[i + j] += shift[moves - 1 - j] * d_moved[i];
        d_rest[2 + moves - 1 - j] = sum;
        along += sum * shift[moves - 1 - j];
    }
    for (int64_t j = 0; j < moves; j++) d_rest[2 + j] = shift[j] * (d_rest[2 + j] - along);
    for (int64_t j = 0; j < reach; j++) d_ring[n + j] += d_ring[j], d_ring[reach + j] += d_ring[reach + n + j];

    REAL *d_gated = d_ring + reach, d_gate = 0, d_strength = 0;
    for (int64_t i = n; i < padded; i++) d_gated[i] = 0;
    for (int64_t i = 0; i < padded; i++) d_gate += d_gated[i] * (content[i] - was[i]);
    d_rest[1] = d_gate * gate * (1 - gate);
    for (int64_t i = 0; i < padded; i++) d_w[i] = (1 - gate) * d_gated[i];

    along = 0;
    for (int64_t i = 0; i < padded; i++) along += d_gated[i] * content[i];
    REAL *d_score = d_moved;
    for (int64_t i = 0; i < padded; i++) d_score[i] = gate * content[i] * (d_gated[i] - along);
    for (int64_t i = 0; i < padded; i++) d_strength += d_score[i] * cosine[i];
    d_rest[0] = d_strength * softplus_derivative(strength);
    const REAL key_norm = inverse_norm(key, word), shorter = key_norm * key_norm * strength * d_strength;
    for (int64_t i = 0; i < padded; i++) pull[i] = strength * key_norm * d_score[i] * norms[i];
    for (int64_t i = 0; i < padded; i++) shrink[i] += strength * d_score[i] * cosine[i] * norms[i] * norms[i];
    for (int64_t m = 0; m < word; m++) {
        REAL sum = 0;
        for (int64_t i = 0; i < padded; i++) sum += pull[i] * memory[m * padded + i];
        d_key[m] = (sum - shorter * key[m]) * (tape->tanh_keys ? 1 - key[m] * key[m] : 1);
    }
}

/* The heads begin ... end - 1 in `memory`; d_memory is added to. `d_reads` where they read, else NULL. */
static void heads_back(
    const Tape *tape, int64_t at, int64_t begin, int64_t end, const Before *from, const REAL *memory, const REAL *norms,
    const REAL *d_reads, REAL *d_w, REAL *d_parameters, REAL *d_memory) {
    const int64_t word = tape->word, n = tape->padded, heads = heads_of(tape), count = end - begin;
    const REAL *parameters = tape->parameters + at * interface_of(tape), *w = tape->w + (at + tape->batch) * heads * n;
    REAL pull[count * n], shrink[n];
    memset(shrink, 0, sizeof shrink);
    for (int64_t h = begin; h < end; h++) {
        REAL *restrict d_head = d_w + h * n;
        for (int64_t m = 0; d_reads && m < word; m++)
            for (int64_t i = 0; i < n; i++) d_head[i] += d_reads[h * word + m] * memory[m * n + i];
        REAL *d_key = d_parameters + h * parameters_of(tape);
        address_back(tape, at, h, from, memory, norms, d_head, d_key, pull + (h - begin) * n, shrink);
    }
    for (int64_t m = 0; m < word; m++) {
        REAL *restrict d_row = d_memory + m * n;
        for (int64_t i = 0; i < n; i++) d_row[i] -= shrink[i] * memory[m * n + i];
        for (int64_t h = begin; h < end; h++) {
            const REAL key = parameters[h * parameters_of(tape) + m], d_read = d_reads ? d_reads[h * word + m] : 0;
            const REAL *restrict of_key = pull + (h - begin) * n, *restrict weights = w + h * n;
            for (int64_t i = 0; i < n; i++) d_row[i] += of_key[i] * key + weights[i] * d_read;
        }
    }
}

/* Backward pass of `write`: d_memory becomes that of the memory before it; d_w, of the write heads, is added to. */
static void write_back(
    const Tape *tape, int64_t at, const REAL *old, REAL *d_memory, REAL *d_w, REAL *d_erase, REAL *d_add) {
    const int64_t word = tape->word, n = tape->padded, heads = heads_of(tape), writes = tape->writes;
    const REAL *erase = tape->parameters + at * interface_of(tape) + heads * parameters_of(tape);
    const REAL *add = erase + writes * word, *w = tape->w + ((at + tape->batch) * heads + tape->reads) * n;
    REAL others[n];
    for (int64_t m = 0; m < word; m++) {
        REAL *restrict d_row = d_memory + m * n;
        const REAL *restrict row = old + m * n;
        for (int64_t h = 0; h < writes; h++) {
            const REAL e = erase[h * word + m], a = add[h * word + m], *restrict weights = w + h * n;
            REAL *restrict d_weights = d_w + h * n, d_e = 0, d_a = 0;
            for (int64_t i = 0; i < n; i++) others[i] = d_row[i] * row[i];
            for (int64_t other = 0; other < writes; other++)
                for (int64_t i = 0; other != h && i < n; i++) others[i] *= 1 - w[other * n + i] * erase[other * word + m];
            for (int64_t i = 0; i < n; i++) {
                d_weights[i] += a * d_row[i] - e * others[i];
                d_e -= weights[i] * others[i];
                d_a += weights[i] * d_row[i];
            }
            d_erase[h * word + m] = d_e * e * (1 - e);
            d_add[h * word + m] = d_a * (tape->tanh_keys ? 1 - a * a : 1);
        }
        for (int64_t h = 0; h < writes; h++)
            for (int64_t i = 0; i < n; i++) d_row[i] *= 1 - w[h * n + i] * erase[h * word + m];
    }
}

/* Backward pass of `write_and_read`, from d_reads and the gradients of memory and weights after the step. */
static void undo(const Tape *tape, int64_t b, int64_t at, const REAL *d_reads, REAL *d_parameters) {
    const int64_t word = tape->word, n = tape->padded, heads = heads_of(tape), reads = tape->reads, after = at + tape->batch;
    const Before from = before(tape, at);
    REAL *d_memory = tape->d_memory + b * word * n, *d_w = tape->d_w + b * heads * n;
    REAL *d_erase = d_parameters + heads * parameters_of(tape), *d_add = d_erase + tape->writes * word;
    const REAL *memory = tape->memory + after * word * n, *norms = tape->norms + after * n;
    if (!tape->read_first) heads_back(tape, at, 0, reads, &from, memory, norms, d_reads, d_w, d_parameters, d_memory);
    write_back(tape, at, from.memory, d_memory, d_w + reads * n, d_erase, d_add);
    if (tape->read_first)
        heads_back(tape, at, 0, reads, &from, from.memory, from.norms, d_reads, d_w, d_parameters, d_memory);
    heads_back(tape, at, reads, heads, &from, from.memory, from.norms, NULL, d_w, d_parameters, d_memory);
}

/* `gradient` is that of the first state of an episode, not of the state before it. */
static void hand_over(REAL *restrict gradient, REAL *restrict fresh, int64_t count) {
    for (int64_t k = 0; k < count; k++) fresh[k] += gradient[k];
    memset(gradient, 0, sizeof(REAL) * count);
}

/* Backward pass over the steps first ... last - 1 for the batch entries begin ... end - 1, from the last step to the
   first. The gradients of the state after `last` are overwritten by those of the state before `first`. The arrays of
   the steps' own gradients begin at `first`. */
void NAME(backward)(const Tape *tape, int64_t first, int64_t last, int64_t begin, int64_t end) {
    const int64_t rows = end - begin, size = tape->hidden, reads = tape->reads * tape->word, width = gates_of(tape);
    const int64_t features = size + reads, interface = interface_of(tape), layers = tape->layers, heads = heads_of(tape);
    REAL d_reads[reads];
    for (int64_t t = last - 1; t >= first; t--) {
        const int64_t at = t * tape->batch + begin, here = at - first * tape->batch;
        REAL *d_parameters = tape->d_parameters + here * interface, *d_hidden = tape->d_hidden + begin * size;
        for (int64_t r = 0; r < rows; r++) {
            const REAL *given = tape->d_features + (at + r) * features;
            const REAL *d_read = tape->d_inputs[0] + (begin + r) * (reads + own(tape));
            for (int64_t k = 0; k < reads; k++) d_reads[k] = d_read[k] + given[size + k];
            memcpy(d_hidden + r * size, given, sizeof(REAL) * size);
            undo(tape, begin + r, at + r, d_reads, d_parameters + r * interface);
        }
        product(d_parameters, interface, rows, tape->interface_weight, interface, size, d_hidden, size);
        for (int64_t l = layers - 1; l >= 0; l--) {
            const int64_t in = below(tape, l), all = in + own(tape);
            REAL *d_gates = tape->d_gates[l] + here * width, *d_inputs = tape->d_inputs[l] + begin * all;
            for (int64_t r = 0; r < rows; r++) {
                const REAL *gates = tape->gates[l] + (at + r) * width;
                REAL *d_row = d_hidden + r * size, *d_gate = d_gates + r * width;
                if (tape->lstm) {
                    for (int64_t k = 0; k < size; k++) d_row[k] += d_inputs[r * all + in + k];
                    lstm_row_backward(
                        gates, tape->cells[l] + (at + r) * size, tape->tanh_cells[l] + (at + r) * size, d_row, d_gate,
                        tape->d_cells[l] + (begin + r) * size, size);
                } else
                    for (int64_t k = 0; k < size; k++) d_gate[k] = d_row[k] * (1 - gates[k] * gates[k]);
            }
            memset(d_inputs, 0, sizeof(REAL) * rows * all);
            product(d_gates, width, rows, tape->weights[l], width, all, d_inputs, all);
            for (int64_t r = 0; l && r < rows; r++) memcpy(d_hidden + r * size, d_inputs + r * all, sizeof(REAL) * size);
        }
        for (int64_t b = begin; tape->starts && b < end; b++) {
            if (!tape->starts[t * tape->batch + b]) continue;
            for (int64_t l = 0; l < layers; l++) {
                const int64_t in = l ? size : 0, all = below(tape, l) + own(tape);
                hand_over(tape->d_inputs[l] + b * all + in, tape->d_fresh_inputs[l] + b * all + in, all - in);
                if (tape->lstm) hand_over(tape->d_cells[l] + b * size, tape->d_fresh_cells[l] + b * size, size);
            }
            const int64_t n = tape->padded, memory = tape->word * n;
            hand_over(tape->d_memory + b * memory, tape->d_fresh_memory + b * memory, memory);
            hand_over(tape->d_w + b * heads * n, tape->d_fresh_w + b * heads * n, heads * n);
        }
    }
}
