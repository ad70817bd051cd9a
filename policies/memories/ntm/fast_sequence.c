/* The neural Turing machine over time, forward and backward; see fast_native.py. Equations and symbols as in memory.py.

   A memory is transposed, [word, padded], with slots padded by zeros to whole SIMD vectors: every operation is a loop
   over slots. Read heads precede write heads. A call processes a block of environments over several steps, so
   that their memories and the weights stay in the cache. Compiled twice, for REAL float and double. */

#include "activations.h"
#include "cells.h"
#include "packed.h"

#define MAX_LAYERS 8
#define NORM_EPS ((REAL)1e-6)
#define WEIGHT_FLOOR ((REAL)1e-16)

typedef struct {
    int64_t batch, layers, hidden, lstm, slots, padded, word, reads, writes, shift_range, read_first, tanh_keys;
    const uint8_t *starts;                                /* [T, B] or NULL */
    const REAL *weights[MAX_LAYERS], *biases[MAX_LAYERS]; /* controller, packed; the first bias is unused */
    const REAL *interface_weight, *interface_bias;        /* packed; not packed */
    REAL *gates[MAX_LAYERS], *inputs[MAX_LAYERS];         /* [T, B, 4 H or H], [T + 1, B, inputs] */
    REAL *cells[MAX_LAYERS], *tanh_cells[MAX_LAYERS];     /* [T + 1, B, H], [T, B, H] */
    REAL *features, *parameters;                          /* [T, B, H + reads], [T, B, interface] */
    REAL *memory, *norms, *w;                             /* [T + 1, B, word, padded], .. padded, .. heads, padded */
    REAL *content_w, *cosines, *shifted, *log_shifted;    /* [T, B, heads, padded] */
    const REAL *initial_inputs[MAX_LAYERS], *initial_cells[MAX_LAYERS]; /* initial state of an episode */
    const REAL *initial_memory, *initial_norms, *initial_w;
    const REAL *d_features;                   /* this and all below: backward only */
    REAL *d_gates[MAX_LAYERS], *d_parameters; /* [steps of a call, B, ...] */
    REAL *d_inputs[MAX_LAYERS], *d_cells[MAX_LAYERS], *d_memory, *d_w,
        *d_hidden; /* of the state, [B, ...]; d_hidden: scratch */
    REAL *d_initial_inputs[MAX_LAYERS], *d_initial_cells[MAX_LAYERS], *d_initial_memory,
        *d_initial_w; /* [B, ...], sums over steps */
} Tape;

/* A row of `inputs` is the input of a layer: the last read vectors or the layer below and, with an LSTM, the layer's
   hidden state. */
static int64_t input_size(const Tape *tape, int64_t l) { return l ? tape->hidden : tape->reads * tape->word; }
static int64_t recurrent_size(const Tape *tape) { return tape->lstm ? tape->hidden : 0; }
static int64_t gates_of(const Tape *tape) { return tape->lstm ? 4 * tape->hidden : tape->hidden; }
static int64_t heads_of(const Tape *tape) { return tape->reads + tape->writes; }
/* Width of k, β, g, s, γ */
static int64_t parameters_of(const Tape *tape) { return tape->word + 2 * tape->shift_range + 4; }
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
    if (starts_at(tape, at)) return (Before){tape->initial_memory, tape->initial_norms, tape->initial_w};
    return (Before){tape->memory + at * tape->word * n, tape->norms + at * n, tape->w + at * heads_of(tape) * n};
}

/* 1 / |M(i)| */
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

/* w^g, eq. (7), of the slots -r ... N + r - 1 modulo N, then zeros; r = shift_range. */
static void
gated(const Tape *tape, const REAL *restrict content_w, const REAL *restrict old_w, REAL gate, REAL *restrict ring) {
    const int64_t n = tape->slots, shift_range = tape->shift_range;
    for (int64_t i = 0; i < tape->padded; i++) ring[shift_range + i] = gate * content_w[i] + (1 - gate) * old_w[i];
    for (int64_t i = n; i < tape->padded + shift_range; i++) ring[shift_range + i] = 0;
    for (int64_t j = 0; j < shift_range; j++) ring[j] = ring[n + j], ring[shift_range + n + j] = ring[shift_range + j];
}

/* §3.3: the weights of a head in `memory`. Applies the activations of its parameters k, β ... γ in place. */
static void
address(const Tape *tape, int64_t at, int64_t head, const Before *from, const REAL *memory, const REAL *norms) {
    const int64_t word = tape->word, n = tape->slots, padded = tape->padded, shifts = 2 * tape->shift_range + 1;
    const int64_t heads = heads_of(tape), offset = (at * heads + head) * padded;
    REAL *key = tape->parameters + at * interface_of(tape) + head * parameters_of(tape), *controls = key + word;
    REAL *restrict cosine = tape->cosines + offset, *restrict shifted = tape->shifted + offset,
                   *restrict log_shifted = tape->log_shifted + offset;
    REAL ring[padded + 2 * tape->shift_range], shift[shifts],
        *w = tape->w + ((at + tape->batch) * heads + head) * padded;

    if (tape->tanh_keys) tanh_inplace(key, word);
    controls[0] = softplus(controls[0]);
    sigmoid_inplace(controls + 1, 1);
    memcpy(shift, controls + 2, sizeof shift);
    softmax(controls + 2, shift, 1, shifts, shifts);
    controls[2 + shifts] = 1 + softplus(controls[2 + shifts]);

    const REAL key_norm = inverse_norm(key, word); /* eq. (5), (6) */
    memset(cosine, 0, sizeof(REAL) * padded);
    for (int64_t m = 0; m < word; m++)
        for (int64_t i = 0; i < padded; i++) cosine[i] += key_norm * key[m] * memory[m * padded + i];
    for (int64_t i = 0; i < padded; i++) cosine[i] *= norms[i];
    softmax(tape->content_w + offset, cosine, controls[0], n, padded);
    gated(tape, tape->content_w + offset, from->w + head * padded, controls[1], ring);
    memset(shifted, 0, sizeof(REAL) * padded); /* eq. (8) */
    for (int64_t j = 0; j < shifts; j++)
        for (int64_t i = 0; i < padded; i++) shifted[i] += ring[i + j] * controls[2 + shifts - 1 - j];
    for (int64_t i = 0; i < padded; i++) log_shifted[i] = log_positive(shifted[i] + WEIGHT_FLOOR);
    softmax(w, log_shifted, controls[2 + shifts], n, padded); /* eq. (9) */
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
            const int64_t below_size = input_size(tape, l), inputs_size = below_size + recurrent_size(tape);
            REAL *inputs = tape->inputs[l] + at * inputs_size, *gates = tape->gates[l] + at * width;
            for (int64_t r = 0; r < rows; r++) {
                if (starts_at(tape, at + r)) {
                    const int64_t skipped = l ? below_size : 0; /* the output of the layer below is that of this step */
                    memcpy(
                        inputs + r * inputs_size + skipped, tape->initial_inputs[l] + skipped,
                        sizeof(REAL) * (inputs_size - skipped));
                    if (tape->lstm) memcpy(tape->cells[l] + (at + r) * size, tape->initial_cells[l], row);
                }
                if (l) memcpy(gates + r * width, tape->biases[l], sizeof(REAL) * width);
            }
            product(inputs, inputs_size, rows, tape->weights[l], inputs_size, width, gates, width);
            const int top = l + 1 == tape->layers;
            const int64_t stride = top ? features : size + recurrent_size(tape);
            REAL *hidden = (top ? tape->features : tape->inputs[l + 1]) + at * stride;
            for (int64_t r = 0; r < rows; r++, hidden += stride, gates += width) {
                if (tape->lstm) {
                    const REAL *old_cell = tape->cells[l] + (at + r) * size;
                    lstm_row(
                        gates, old_cell, tape->cells[l] + (next + r) * size, tape->tanh_cells[l] + (at + r) * size,
                        hidden, size);
                    memcpy(tape->inputs[l] + (next + r) * inputs_size + below_size, hidden, row);
                } else {
                    tanh_inplace(gates, size);
                    memcpy(hidden, gates, row);
                }
            }
        }
        REAL *parameters = tape->parameters + at * interface, *step_features = tape->features + at * features;
        for (int64_t r = 0; r < rows; r++)
            memcpy(parameters + r * interface, tape->interface_bias, sizeof(REAL) * interface);
        product(step_features, features, rows, tape->interface_weight, size, interface, parameters, interface);
        for (int64_t r = 0; r < rows; r++) {
            REAL *read = step_features + r * features + size;
            write_and_read(tape, at + r, read);
            memcpy(tape->inputs[0] + (next + r) * (reads + recurrent_size(tape)), read, sizeof(REAL) * reads);
        }
    }
}

/* Backward pass of `address`. d_w of w is overwritten by that of w_{t-1}; d_key: gradients of the head's parameters
   before their activations. The gradient of the memory is d_dot k - norm_term M; adds to norm_term. */
static void address_backward(
    const Tape *tape, int64_t at, int64_t head, const Before *from, const REAL *memory, const REAL *norms,
    REAL *restrict d_w, REAL *restrict d_key, REAL *restrict d_dot, REAL *restrict norm_term) {
    const int64_t word = tape->word, n = tape->slots, padded = tape->padded, shift_range = tape->shift_range,
                  shifts = 2 * shift_range + 1;
    const int64_t heads = heads_of(tape), offset = (at * heads + head) * padded;
    const REAL *key = tape->parameters + at * interface_of(tape) + head * parameters_of(tape), *controls = key + word;
    const REAL *restrict cosine = tape->cosines + offset, *restrict shifted = tape->shifted + offset;
    const REAL *restrict log_shifted = tape->log_shifted + offset, *restrict content_w = tape->content_w + offset;
    const REAL *restrict w = tape->w + ((at + tape->batch) * heads + head) * padded, *restrict old_w =
                                                                                         from->w + head * padded;
    REAL ring[padded + 2 * shift_range], d_ring[padded + 2 * shift_range], d_shifted[padded],
        *d_controls = d_key + word;
    const REAL strength = controls[0], gate = controls[1], *shift = controls + 2, sharpness = controls[2 + shifts];

    REAL inner_product = 0, d_sharpness = 0;
    for (int64_t i = 0; i < padded; i++) inner_product += d_w[i] * w[i];
    for (int64_t i = 0; i < padded; i++) d_shifted[i] = w[i] * (d_w[i] - inner_product);
    for (int64_t i = 0; i < padded; i++) d_sharpness += d_shifted[i] * log_shifted[i];
    for (int64_t i = 0; i < padded; i++) d_shifted[i] *= sharpness / (shifted[i] + WEIGHT_FLOOR);
    d_controls[2 + shifts] = d_sharpness * softplus_derivative(sharpness - 1);

    gated(tape, content_w, old_w, gate, ring);
    memset(d_ring, 0, sizeof d_ring);
    inner_product = 0;
    for (int64_t j = 0; j < shifts; j++) {
        REAL sum = 0;
        for (int64_t i = 0; i < padded; i++) sum += ring[i + j] * d_shifted[i];
        for (int64_t i = 0; i < padded; i++) d_ring[i + j] += shift[shifts - 1 - j] * d_shifted[i];
        d_controls[2 + shifts - 1 - j] = sum;
        inner_product += sum * shift[shifts - 1 - j];
    }
    for (int64_t j = 0; j < shifts; j++) d_controls[2 + j] = shift[j] * (d_controls[2 + j] - inner_product);
    for (int64_t j = 0; j < shift_range; j++)
        d_ring[n + j] += d_ring[j], d_ring[shift_range + j] += d_ring[shift_range + n + j];

    REAL *d_gated = d_ring + shift_range, d_gate = 0, d_strength = 0;
    for (int64_t i = n; i < padded; i++) d_gated[i] = 0;
    for (int64_t i = 0; i < padded; i++) d_gate += d_gated[i] * (content_w[i] - old_w[i]);
    d_controls[1] = d_gate * gate * (1 - gate);
    for (int64_t i = 0; i < padded; i++) d_w[i] = (1 - gate) * d_gated[i];

    inner_product = 0;
    for (int64_t i = 0; i < padded; i++) inner_product += d_gated[i] * content_w[i];
    REAL *d_score = d_shifted;
    for (int64_t i = 0; i < padded; i++) d_score[i] = gate * content_w[i] * (d_gated[i] - inner_product);
    for (int64_t i = 0; i < padded; i++) d_strength += d_score[i] * cosine[i];
    d_controls[0] = d_strength * softplus_derivative(strength);
    const REAL key_norm = inverse_norm(key, word), key_norm_term = key_norm * key_norm * strength * d_strength;
    for (int64_t i = 0; i < padded; i++) d_dot[i] = strength * key_norm * d_score[i] * norms[i];
    for (int64_t i = 0; i < padded; i++) norm_term[i] += strength * d_score[i] * cosine[i] * norms[i] * norms[i];
    for (int64_t m = 0; m < word; m++) {
        REAL sum = 0;
        for (int64_t i = 0; i < padded; i++) sum += d_dot[i] * memory[m * padded + i];
        d_key[m] = (sum - key_norm_term * key[m]) * (tape->tanh_keys ? 1 - key[m] * key[m] : 1);
    }
}

/* Backward pass of the heads begin ... end - 1, which address `memory`; adds to d_memory. d_reads: of read heads,
   or NULL. */
static void heads_backward(
    const Tape *tape, int64_t at, int64_t begin, int64_t end, const Before *from, const REAL *memory, const REAL *norms,
    const REAL *d_reads, REAL *d_w, REAL *d_parameters, REAL *d_memory) {
    const int64_t word = tape->word, n = tape->padded, heads = heads_of(tape), count = end - begin;
    const REAL *parameters = tape->parameters + at * interface_of(tape), *w = tape->w + (at + tape->batch) * heads * n;
    REAL d_dot[count * n], norm_term[n];
    memset(norm_term, 0, sizeof norm_term);
    for (int64_t h = begin; h < end; h++) {
        REAL *restrict d_head = d_w + h * n;
        for (int64_t m = 0; d_reads && m < word; m++)
            for (int64_t i = 0; i < n; i++) d_head[i] += d_reads[h * word + m] * memory[m * n + i];
        REAL *d_key = d_parameters + h * parameters_of(tape);
        address_backward(tape, at, h, from, memory, norms, d_head, d_key, d_dot + (h - begin) * n, norm_term);
    }
    for (int64_t m = 0; m < word; m++) {
        REAL *restrict d_row = d_memory + m * n;
        for (int64_t i = 0; i < n; i++) d_row[i] -= norm_term[i] * memory[m * n + i];
        for (int64_t h = begin; h < end; h++) {
            const REAL key = parameters[h * parameters_of(tape) + m], d_read = d_reads ? d_reads[h * word + m] : 0;
            const REAL *restrict d_dot_h = d_dot + (h - begin) * n, *restrict weights = w + h * n;
            for (int64_t i = 0; i < n; i++) d_row[i] += d_dot_h[i] * key + weights[i] * d_read;
        }
    }
}

/* Backward pass of `write`: d_memory of the new memory is overwritten by that of the old one; adds to d_w. */
static void
write_backward(const Tape *tape, int64_t at, const REAL *old, REAL *d_memory, REAL *d_w, REAL *d_erase, REAL *d_add) {
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
                for (int64_t i = 0; other != h && i < n; i++)
                    others[i] *= 1 - w[other * n + i] * erase[other * word + m];
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
static void write_and_read_backward(const Tape *tape, int64_t b, int64_t at, const REAL *d_reads, REAL *d_parameters) {
    const int64_t word = tape->word, n = tape->padded, heads = heads_of(tape), reads = tape->reads,
                  after = at + tape->batch;
    const Before from = before(tape, at);
    REAL *d_memory = tape->d_memory + b * word * n, *d_w = tape->d_w + b * heads * n;
    REAL *d_erase = d_parameters + heads * parameters_of(tape), *d_add = d_erase + tape->writes * word;
    const REAL *memory = tape->memory + after * word * n, *norms = tape->norms + after * n;
    if (!tape->read_first)
        heads_backward(tape, at, 0, reads, &from, memory, norms, d_reads, d_w, d_parameters, d_memory);
    write_backward(tape, at, from.memory, d_memory, d_w + reads * n, d_erase, d_add);
    if (tape->read_first)
        heads_backward(tape, at, 0, reads, &from, from.memory, from.norms, d_reads, d_w, d_parameters, d_memory);
    heads_backward(tape, at, reads, heads, &from, from.memory, from.norms, NULL, d_w, d_parameters, d_memory);
}

/* Where an episode starts, the gradient belongs to the initial state, not to the state before the step. */
static void move_gradient(REAL *restrict gradient, REAL *restrict d_initial, int64_t count) {
    for (int64_t k = 0; k < count; k++) d_initial[k] += gradient[k];
    memset(gradient, 0, sizeof(REAL) * count);
}

/* Backward pass over the steps first ... last - 1 for the batch entries begin ... end - 1, from the last step to the
   first. The gradients of the state after `last` are overwritten by those of the state before `first`. Gradient
   arrays of steps begin with step `first`. */
void NAME(backward)(const Tape *tape, int64_t first, int64_t last, int64_t begin, int64_t end) {
    const int64_t rows = end - begin, size = tape->hidden, reads = tape->reads * tape->word, width = gates_of(tape);
    const int64_t features = size + reads, interface = interface_of(tape), layers = tape->layers,
                  heads = heads_of(tape);
    REAL d_reads[reads];
    for (int64_t t = last - 1; t >= first; t--) {
        const int64_t at = t * tape->batch + begin, grad_at = at - first * tape->batch;
        REAL *d_parameters = tape->d_parameters + grad_at * interface, *d_hidden = tape->d_hidden + begin * size;
        for (int64_t r = 0; r < rows; r++) {
            const REAL *d_out = tape->d_features + (at + r) * features;
            const REAL *d_read = tape->d_inputs[0] + (begin + r) * (reads + recurrent_size(tape));
            for (int64_t k = 0; k < reads; k++) d_reads[k] = d_read[k] + d_out[size + k];
            memcpy(d_hidden + r * size, d_out, sizeof(REAL) * size);
            write_and_read_backward(tape, begin + r, at + r, d_reads, d_parameters + r * interface);
        }
        product(d_parameters, interface, rows, tape->interface_weight, interface, size, d_hidden, size);
        for (int64_t l = layers - 1; l >= 0; l--) {
            const int64_t below_size = input_size(tape, l), inputs_size = below_size + recurrent_size(tape);
            REAL *d_gates = tape->d_gates[l] + grad_at * width, *d_inputs = tape->d_inputs[l] + begin * inputs_size;
            for (int64_t r = 0; r < rows; r++) {
                const REAL *gates = tape->gates[l] + (at + r) * width;
                REAL *d_row = d_hidden + r * size, *d_gate = d_gates + r * width;
                if (tape->lstm) {
                    for (int64_t k = 0; k < size; k++) d_row[k] += d_inputs[r * inputs_size + below_size + k];
                    lstm_row_backward(
                        gates, tape->cells[l] + (at + r) * size, tape->tanh_cells[l] + (at + r) * size, d_row, d_gate,
                        tape->d_cells[l] + (begin + r) * size, size);
                } else
                    for (int64_t k = 0; k < size; k++) d_gate[k] = d_row[k] * (1 - gates[k] * gates[k]);
            }
            memset(d_inputs, 0, sizeof(REAL) * rows * inputs_size);
            product(d_gates, width, rows, tape->weights[l], width, inputs_size, d_inputs, inputs_size);
            for (int64_t r = 0; l && r < rows; r++)
                memcpy(d_hidden + r * size, d_inputs + r * inputs_size, sizeof(REAL) * size);
        }
        for (int64_t b = begin; tape->starts && b < end; b++) {
            if (!tape->starts[t * tape->batch + b]) continue;
            for (int64_t l = 0; l < layers; l++) {
                const int64_t below_size = l ? size : 0, inputs_size = input_size(tape, l) + recurrent_size(tape);
                move_gradient(
                    tape->d_inputs[l] + b * inputs_size + below_size,
                    tape->d_initial_inputs[l] + b * inputs_size + below_size, inputs_size - below_size);
                if (tape->lstm) move_gradient(tape->d_cells[l] + b * size, tape->d_initial_cells[l] + b * size, size);
            }
            const int64_t n = tape->padded, memory = tape->word * n;
            move_gradient(tape->d_memory + b * memory, tape->d_initial_memory + b * memory, memory);
            move_gradient(tape->d_w + b * heads * n, tape->d_initial_w + b * heads * n, heads * n);
        }
    }
}
