/* The D-NTM with soft addressing over time, forward and backward; see fast_native.py. Equations and symbols as in
   memory.py.

   Addresses and contents are stored transposed, [address or word, padded], and slots padded with zeros to whole SIMD
   vectors, so that every operation is a loop over slots. Read heads come before write heads. An episode starts with
   zeros. Compiled twice, for REAL float and double. */

#include "activations.h"
#include "packed.h"
#include "products.h"

typedef struct {
    int64_t batch, hidden, slots, places, padded, address, word, reads, writes, avoids; /* places: with that of no operation */
    double decay;                                              /* of v */
    const uint8_t *starts;                                     /* [T, B], or NULL */
    const REAL *recurrent, *from_read, *interface;             /* packed, each for its direction */
    const REAL *recurrent_bias, *bias, *addresses, *squares;   /* A [address, padded]; its squares summed, [padded] */
    const REAL *aside;                                         /* W_x x and the input's part of α, [T, B, ...] */
    const REAL *first_contents, *first_norms, *fresh_contents, *fresh_norms; /* [B, ...]; at the start of an episode */
    REAL *gates, *recalled, *hidden_in, *read_in, *features, *parameters; /* [T, B, ...]; recalled: W_hn h + b_hn */
    REAL *contents, *norms, *w, *cosines, *usage;              /* after each step; v before, [T + 1, B, ...] */
    const REAL *d_features, *d_w;                              /* backward only, as all that follow; w of the last step */
    REAL *d_gates, *d_recurrent, *d_parameters, *d_aside;      /* [T, B, ...] */
    REAL *d_contents, *d_addresses, *d_hidden, *d_read;        /* [B, ...] */
} Tape;

static int64_t heads_of(const Tape *tape) { return tape->reads + tape->writes; }
static int64_t words_of(const Tape *tape) { return tape->address + tape->word; }
static int64_t head_of(const Tape *tape) { return words_of(tape) + 1 + tape->avoids; } /* k, β, γ */
static int64_t interface_of(const Tape *tape) { return heads_of(tape) * head_of(tape) + 2 * tape->writes * tape->word + 1; }
static int begins(const Tape *tape, int64_t at) { return tape->starts && tape->starts[at]; }
static REAL inverse_norm(const REAL *x, int64_t n) { return 1 / (REAL)sqrt(dot(x, x, n) + (REAL)1e-6); }
static const REAL *row_of(const Tape *tape, const REAL *contents, int64_t j) {
    return (j < tape->address ? tape->addresses + j * tape->padded : contents + (j - tape->address) * tape->padded);
}

typedef struct {
    const REAL *contents, *norms;
} Slots;

static Slots before(const Tape *tape, int64_t b, int64_t at) {
    const int64_t n = tape->padded, was = at - tape->batch;
    if (begins(tape, at)) return (Slots){tape->fresh_contents, tape->fresh_norms};
    if (was < 0) return (Slots){tape->first_contents + b * tape->word * n, tape->first_norms + b * n};
    return (Slots){tape->contents + was * tape->word * n, tape->norms + was * n};
}

/* 1 / |[A(i); C(i)]| for `count` memories [word, padded] */
void NAME(norms)(const REAL *contents, const REAL *squares, int64_t count, int64_t word, int64_t n, REAL *restrict norms) {
    for (int64_t b = 0; b < count; b++, norms += n) {
        memcpy(norms, squares, sizeof(REAL) * n);
        for (int64_t m = 0; m < word; m++, contents += n)
            for (int64_t i = 0; i < n; i++) norms[i] += contents[i] * contents[i];
        for (int64_t i = 0; i < n; i++) norms[i] = 1 / (REAL)sqrt(norms[i] + (REAL)1e-6);
    }
}

static void address(const Tape *tape, int64_t at, int64_t head, Slots slots) {
    const int64_t n = tape->padded, words = words_of(tape), here = (at * heads_of(tape) + head) * n;
    REAL *key = tape->parameters + at * interface_of(tape) + head * head_of(tape), *beta = key + words, gamma = 0;
    const REAL *restrict v = tape->usage + here;
    REAL *restrict after = tape->usage + here + tape->batch * heads_of(tape) * n, *restrict cosine = tape->cosines + here;
    REAL logits[n];
    *beta = 1 + softplus(*beta);
    if (tape->avoids) sigmoid_inplace(beta + 1, 1), gamma = beta[1];
    memset(cosine, 0, sizeof(REAL) * n);
    for (int64_t j = 0; j < words; j++) axpy(cosine, key[j], row_of(tape, slots.contents, j), n);
    const REAL norm = inverse_norm(key, words), strength = *beta, decay = (REAL)tape->decay;
    for (int64_t i = 0; i < n; i++) cosine[i] *= norm * slots.norms[i];
    for (int64_t i = 0; i < n; i++) logits[i] = strength * cosine[i] - gamma * v[i];
    for (int64_t i = 0; i < n; i++) after[i] = decay * v[i] + (1 - decay) * strength * cosine[i];
    softmax(tape->w + here, logits, 1, tape->places, n);
}

/* Weights of the slots that have a content. */
static void with_content(const Tape *tape, const REAL *w, REAL *held) {
    memcpy(held, w, sizeof(REAL) * tape->slots);
    memset(held + tape->slots, 0, sizeof(REAL) * (tape->padded - tape->slots));
}

static void write_and_read(const Tape *tape, int64_t b, int64_t at, REAL *read) {
    const int64_t n = tape->padded, word = tape->word, writes = tape->writes, heads = heads_of(tape);
    const Slots old = before(tape, b, at);
    if (begins(tape, at)) memset(tape->usage + at * heads * n, 0, sizeof(REAL) * heads * n);
    REAL *erase = tape->parameters + at * interface_of(tape) + heads * head_of(tape), *candidate = erase + writes * word;
    REAL *alpha = candidate + writes * word, *contents = tape->contents + at * word * n, *found = tape->norms + at * n;
    const REAL *aside = tape->aside + at * (writes * word + 1);
    REAL held[writes * n];
    for (int64_t h = 0; h < writes; h++) {
        address(tape, at, tape->reads + h, old);
        with_content(tape, tape->w + (at * heads + tape->reads + h) * n, held + h * n);
    }
    sigmoid_inplace(erase, writes * word);
    *alpha += aside[writes * word];
    sigmoid_inplace(alpha, 1);
    for (int64_t k = 0; k < writes * word; k++) candidate[k] += *alpha * aside[k];
    for (int64_t k = 0; k < writes * word; k++) candidate[k] = candidate[k] > 0 ? candidate[k] : 0;
    for (int64_t m = 0; m < word; m++) {
        REAL *restrict row = contents + m * n;
        memcpy(row, old.contents + m * n, sizeof(REAL) * n);
        for (int64_t h = 0; h < writes; h++)
            for (int64_t i = 0; i < n; i++) row[i] *= 1 - held[h * n + i] * erase[h * word + m];
        for (int64_t h = 0; h < writes; h++) axpy(row, candidate[h * word + m], held + h * n, n);
    }
    NAME(norms)(contents, tape->squares, 1, word, n, found);
    for (int64_t h = 0; h < tape->reads; h++) {
        address(tape, at, h, (Slots){contents, found});
        const REAL *w = tape->w + (at * heads + h) * n;
        for (int64_t j = 0; j < words_of(tape); j++) *read++ = dot(w, row_of(tape, contents, j), tape->slots);
    }
}

/* Steps first ... last - 1 of the batch entries begin ... end - 1. `gates` contains the input's part of the
   pre-activations, with its bias. */
void NAME(forward)(const Tape *tape, int64_t first, int64_t last, int64_t begin, int64_t end) {
    const int64_t rows = end - begin, size = tape->hidden, read = tape->reads * words_of(tape), width = interface_of(tape);
    REAL sums[rows * 3 * size];
    for (int64_t t = first; t < last; t++) {
        const int64_t at = t * tape->batch + begin, next = at + tape->batch;
        REAL *gates = tape->gates + at * 3 * size, *features = tape->features + at * (size + read);
        REAL *parameters = tape->parameters + at * width;
        for (int64_t r = 0; r < rows; r++) {
            memcpy(sums + r * 3 * size, tape->recurrent_bias, sizeof(REAL) * 3 * size);
            memcpy(parameters + r * width, tape->bias, sizeof(REAL) * width);
            if (!begins(tape, at + r)) continue;
            memset(tape->hidden_in + (at + r) * size, 0, sizeof(REAL) * size);
            memset(tape->read_in + (at + r) * read, 0, sizeof(REAL) * read);
        }
        product(tape->read_in + at * read, read, rows, tape->from_read, read, 3 * size, gates, 3 * size);
        product(tape->hidden_in + at * size, size, rows, tape->recurrent, size, 3 * size, sums, 3 * size);
        for (int64_t r = 0; r < rows; r++) {
            REAL *restrict own = gates + r * 3 * size, *restrict n = own + 2 * size, *hidden = features + r * (size + read);
            const REAL *restrict sum = sums + r * 3 * size, *was = tape->hidden_in + (at + r) * size;
            for (int64_t k = 0; k < 2 * size; k++) own[k] += sum[k];
            sigmoid_inplace(own, 2 * size);
            for (int64_t k = 0; k < size; k++) n[k] += own[k] * sum[2 * size + k];
            tanh_inplace(n, size);
            for (int64_t k = 0; k < size; k++) hidden[k] = n[k] + own[size + k] * (was[k] - n[k]);
            memcpy(tape->recalled + (at + r) * size, sum + 2 * size, sizeof(REAL) * size);
            memcpy(tape->hidden_in + (next + r) * size, hidden, sizeof(REAL) * size);
        }
        product(features, size + read, rows, tape->interface, size, width, parameters, width);
        for (int64_t r = 0; r < rows; r++) {
            write_and_read(tape, begin + r, at + r, features + r * (size + read) + size);
            memcpy(tape->read_in + (next + r) * read, features + r * (size + read) + size, sizeof(REAL) * read);
        }
    }
}

/* Backward pass of `address`, from d_w; those of contents and addresses are added to. */
static void address_back(
    const Tape *tape, int64_t at, int64_t head, Slots slots, const REAL *restrict d_w, REAL *d_contents, REAL *d_addresses,
    REAL *d_key) {
    const int64_t n = tape->padded, words = words_of(tape), here = (at * heads_of(tape) + head) * n;
    const REAL *key = tape->parameters + at * interface_of(tape) + head * head_of(tape), *beta = key + words;
    const REAL *restrict w = tape->w + here, *restrict cosine = tape->cosines + here, *v = tape->usage + here;
    const REAL norm = inverse_norm(key, words), strength = *beta, along = dot(d_w, w, n);
    REAL d_logit[n], pull[n], shrink[n], *d_beta = d_key + words;
    for (int64_t i = 0; i < n; i++) d_logit[i] = w[i] * (d_w[i] - along);
    const REAL d_strength = dot(d_logit, cosine, n), shorter = norm * norm * strength * d_strength;
    *d_beta = d_strength * softplus_derivative(strength - 1);
    if (tape->avoids) d_beta[1] = -dot(d_logit, v, n) * beta[1] * (1 - beta[1]);
    for (int64_t i = 0; i < n; i++) pull[i] = strength * norm * d_logit[i] * slots.norms[i];
    for (int64_t i = 0; i < n; i++) shrink[i] = strength * d_logit[i] * cosine[i] * slots.norms[i] * slots.norms[i];
    for (int64_t j = 0; j < words; j++) {
        const REAL *restrict row = row_of(tape, slots.contents, j), k = key[j];
        REAL *restrict d_row = j < tape->address ? d_addresses + j * n : d_contents + (j - tape->address) * n;
        d_key[j] = dot(pull, row, n) - shorter * k;
        for (int64_t i = 0; i < n; i++) d_row[i] += pull[i] * k - shrink[i] * row[i];
    }
}

/* From the gradient of the read-out; overwrites the gradient of the contents by that before the step. */
static void undo(const Tape *tape, int64_t b, int64_t at, const REAL *d_read, int last, REAL *d_parameters, REAL *d_aside) {
    const int64_t n = tape->padded, word = tape->word, writes = tape->writes, reads = tape->reads, heads = heads_of(tape);
    const Slots old = before(tape, b, at), now = {tape->contents + at * word * n, tape->norms + at * n};
    const REAL *erase = tape->parameters + at * interface_of(tape) + heads * head_of(tape), *candidate = erase + writes * word;
    const REAL alpha = candidate[writes * word], *aside = tape->aside + at * (writes * word + 1);
    REAL *d_erase = d_parameters + heads * head_of(tape), *d_candidate = d_erase + writes * word, d_alpha = 0;
    REAL *d_contents = tape->d_contents + b * word * n, *d_addresses = tape->d_addresses + b * tape->address * n;
    REAL d_w[heads * n], held[heads * n], others[n];
    for (int64_t h = 0; h < heads; h++) with_content(tape, tape->w + (at * heads + h) * n, held + h * n);
    if (last)
        memcpy(d_w, tape->d_w + b * heads * n, sizeof d_w);
    else
        memset(d_w, 0, sizeof d_w);

    for (int64_t h = 0; h < reads; h++) {
        for (int64_t j = 0; j < words_of(tape); j++) axpy(d_w + h * n, *(d_read + j), row_of(tape, now.contents, j), tape->slots);
        address_back(tape, at, h, now, d_w + h * n, d_contents, d_addresses, d_parameters + h * head_of(tape));
        for (int64_t j = 0; j < words_of(tape); j++, d_read++)
            axpy(j < tape->address ? d_addresses + j * n : d_contents + (j - tape->address) * n, *d_read, held + h * n, n);
    }

    const REAL *w = held + reads * n;
    for (int64_t m = 0; m < word; m++) {
        REAL *restrict d_row = d_contents + m * n;
        const REAL *restrict row = old.contents + m * n;
        for (int64_t h = 0; h < writes; h++) {
            const REAL e = erase[h * word + m], c = candidate[h * word + m];
            for (int64_t i = 0; i < n; i++) others[i] = d_row[i] * row[i];
            for (int64_t other = 0; other < writes; other++)
                for (int64_t i = 0; other != h && i < n; i++) others[i] *= 1 - w[other * n + i] * erase[other * word + m];
            REAL *restrict d_weights = d_w + (reads + h) * n;
            for (int64_t i = 0; i < tape->slots; i++) d_weights[i] += c * d_row[i] - e * others[i];
            d_erase[h * word + m] = -dot(w + h * n, others, n) * e * (1 - e);
            d_candidate[h * word + m] = c > 0 ? dot(w + h * n, d_row, n) : 0;
        }
        for (int64_t h = 0; h < writes; h++)
            for (int64_t i = 0; i < n; i++) d_row[i] *= 1 - w[h * n + i] * erase[h * word + m];
    }
    for (int64_t k = 0; k < writes * word; k++) d_aside[k] = alpha * d_candidate[k], d_alpha += aside[k] * d_candidate[k];
    d_candidate[writes * word] = d_aside[writes * word] = d_alpha * alpha * (1 - alpha);
    for (int64_t h = reads; h < heads; h++)
        address_back(tape, at, h, old, d_w + h * n, d_contents, d_addresses, d_parameters + h * head_of(tape));
    if (begins(tape, at)) memset(d_contents, 0, sizeof(REAL) * word * n);
}

/* Backward pass over all steps, from the last, `last` - 1, to the first. */
void NAME(backward)(const Tape *tape, int64_t first, int64_t last, int64_t begin, int64_t end) {
    const int64_t rows = end - begin, size = tape->hidden, read = tape->reads * words_of(tape), width = interface_of(tape);
    REAL *d_hidden = tape->d_hidden + begin * size, *d_read = tape->d_read + begin * read;
    for (int64_t t = last - 1; t >= first; t--) {
        const int64_t at = t * tape->batch + begin, aside = tape->writes * tape->word + 1;
        REAL *d_gates = tape->d_gates + at * 3 * size, *d_sums = tape->d_recurrent + at * 3 * size;
        REAL *d_parameters = tape->d_parameters + at * width;
        for (int64_t r = 0; r < rows; r++) {
            const REAL *given = tape->d_features + (at + r) * (size + read);
            axpy(d_hidden + r * size, 1, given, size);
            axpy(d_read + r * read, 1, given + size, read);
            undo(
                tape, begin + r, at + r, d_read + r * read, t == last - 1, d_parameters + r * width,
                tape->d_aside + (at + r) * aside);
        }
        product(d_parameters, width, rows, tape->interface, width, size, d_hidden, size);
        for (int64_t r = 0; r < rows; r++) {
            const REAL *gate = tape->gates + (at + r) * 3 * size, *z = gate + size, *n = z + size;
            const REAL *recalled = tape->recalled + (at + r) * size, *was = tape->hidden_in + (at + r) * size;
            REAL *own = d_gates + r * 3 * size, *sum = d_sums + r * 3 * size, *d = d_hidden + r * size;
            for (int64_t k = 0; k < size; k++) {
                const REAL d_n = d[k] * (1 - z[k]) * (1 - n[k] * n[k]);
                own[k] = sum[k] = d_n * recalled[k] * gate[k] * (1 - gate[k]);
                own[size + k] = sum[size + k] = d[k] * (was[k] - n[k]) * z[k] * (1 - z[k]);
                own[2 * size + k] = d_n, sum[2 * size + k] = d_n * gate[k];
                d[k] *= z[k];
            }
        }
        memset(d_read, 0, sizeof(REAL) * rows * read);
        product(d_gates, 3 * size, rows, tape->from_read, 3 * size, read, d_read, read);
        product(d_sums, 3 * size, rows, tape->recurrent, 3 * size, size, d_hidden, size);
        for (int64_t r = 0; r < rows; r++) {
            if (!begins(tape, at + r)) continue;
            memset(d_hidden + r * size, 0, sizeof(REAL) * size);
            memset(d_read + r * read, 0, sizeof(REAL) * read);
        }
    }
}
