/* The D-NTM with soft addressing over time, forward and backward; see fast_native.py. Equations and symbols as in
   memory.py.

   Addresses and contents are transposed, [address or word, padded], with slots padded by zeros to whole SIMD vectors:
   every operation is a loop over slots. Read heads precede write heads. The state is zero at the start of an episode.
   Compiled twice, for REAL float and double. */

#include "activations.h"
#include "packed.h"
#include "products.h"

typedef struct {
    int64_t batch, hidden, slots, places, padded, address, word, reads, writes,
        lru;                                                 /* places: slots, with the no-operation slot */
    double decay;                                            /* of v */
    const uint8_t *starts;                                   /* [T, B], or NULL */
    const REAL *recurrent, *from_read, *interface;           /* packed for the forward or backward pass */
    const REAL *recurrent_bias, *bias, *addresses, *squares; /* A [address, padded]; |A(i)|², [padded] */
    const REAL *candidates_x;                                /* W_x x and the input's part of α, [T, B, ...] */
    const REAL *first_contents, *first_norms, *initial_contents,
        *initial_norms;                                                   /* [B, ...]; at the start of an episode */
    REAL *gates, *n_hidden, *hidden_in, *read_in, *features, *parameters; /* [T, B, ...]; n_hidden: W_hn h + b_hn */
    REAL *contents, *norms, *w, *cosines, *usage; /* after each step; usage: v before each step, [T + 1, B, ...] */
    const REAL *d_features, *d_w;                 /* this and all below: backward only; d_w: of the last step */
    REAL *d_gates, *d_recurrent, *d_parameters, *d_candidates_x; /* [T, B, ...] */
    REAL *d_contents, *d_addresses, *d_hidden, *d_read;          /* [B, ...] */
} Tape;

static int64_t heads_of(const Tape *tape) { return tape->reads + tape->writes; }
static int64_t slot_width(const Tape *tape) { return tape->address + tape->word; }
static int64_t head_size(const Tape *tape) { return slot_width(tape) + 1 + tape->lru; } /* width of k, β, γ */
static int64_t interface_of(const Tape *tape) {
    return heads_of(tape) * head_size(tape) + 2 * tape->writes * tape->word + 1;
}
static int starts_at(const Tape *tape, int64_t at) { return tape->starts && tape->starts[at]; }
static REAL inverse_norm(const REAL *x, int64_t n) { return 1 / (REAL)sqrt(dot(x, x, n) + (REAL)1e-6); }
static const REAL *row_of(const Tape *tape, const REAL *contents, int64_t j) {
    return (j < tape->address ? tape->addresses + j * tape->padded : contents + (j - tape->address) * tape->padded);
}

typedef struct {
    const REAL *contents, *norms;
} Slots;

static Slots before(const Tape *tape, int64_t b, int64_t at) {
    const int64_t n = tape->padded, previous = at - tape->batch;
    if (starts_at(tape, at)) return (Slots){tape->initial_contents, tape->initial_norms};
    if (previous < 0) return (Slots){tape->first_contents + b * tape->word * n, tape->first_norms + b * n};
    return (Slots){tape->contents + previous * tape->word * n, tape->norms + previous * n};
}

/* 1 / |[A(i); C(i)]| for `count` memories [word, padded] */
void NAME(norms)(
    const REAL *contents, const REAL *squares, int64_t count, int64_t word, int64_t n, REAL *restrict norms) {
    for (int64_t b = 0; b < count; b++, norms += n) {
        memcpy(norms, squares, sizeof(REAL) * n);
        for (int64_t m = 0; m < word; m++, contents += n)
            for (int64_t i = 0; i < n; i++) norms[i] += contents[i] * contents[i];
        for (int64_t i = 0; i < n; i++) norms[i] = 1 / (REAL)sqrt(norms[i] + (REAL)1e-6);
    }
}

static void address(const Tape *tape, int64_t at, int64_t head, Slots slots) {
    const int64_t n = tape->padded, width = slot_width(tape), offset = (at * heads_of(tape) + head) * n;
    REAL *key = tape->parameters + at * interface_of(tape) + head * head_size(tape), *beta = key + width, gamma = 0;
    const REAL *restrict v = tape->usage + offset;
    REAL *restrict new_v = tape->usage + offset + tape->batch * heads_of(tape) * n, *restrict cosine =
                                                                                        tape->cosines + offset;
    REAL logits[n];
    *beta = 1 + softplus(*beta);
    if (tape->lru) sigmoid_inplace(beta + 1, 1), gamma = beta[1];
    memset(cosine, 0, sizeof(REAL) * n);
    for (int64_t j = 0; j < width; j++) axpy(cosine, key[j], row_of(tape, slots.contents, j), n);
    const REAL norm = inverse_norm(key, width), strength = *beta, decay = (REAL)tape->decay;
    for (int64_t i = 0; i < n; i++) cosine[i] *= norm * slots.norms[i];
    for (int64_t i = 0; i < n; i++) logits[i] = strength * cosine[i] - gamma * v[i];
    for (int64_t i = 0; i < n; i++) new_v[i] = decay * v[i] + (1 - decay) * strength * cosine[i];
    softmax(tape->w + offset, logits, 1, tape->places, n);
}

/* w with zeros for slots without content. */
static void with_content(const Tape *tape, const REAL *w, REAL *content_w) {
    memcpy(content_w, w, sizeof(REAL) * tape->slots);
    memset(content_w + tape->slots, 0, sizeof(REAL) * (tape->padded - tape->slots));
}

static void write_and_read(const Tape *tape, int64_t b, int64_t at, REAL *read) {
    const int64_t n = tape->padded, word = tape->word, writes = tape->writes, heads = heads_of(tape);
    const Slots old = before(tape, b, at);
    if (starts_at(tape, at)) memset(tape->usage + at * heads * n, 0, sizeof(REAL) * heads * n);
    REAL *erase = tape->parameters + at * interface_of(tape) + heads * head_size(tape),
         *candidate = erase + writes * word;
    REAL *alpha = candidate + writes * word, *contents = tape->contents + at * word * n,
         *new_norms = tape->norms + at * n;
    const REAL *candidates_x = tape->candidates_x + at * (writes * word + 1);
    REAL content_w[writes * n];
    for (int64_t h = 0; h < writes; h++) {
        address(tape, at, tape->reads + h, old);
        with_content(tape, tape->w + (at * heads + tape->reads + h) * n, content_w + h * n);
    }
    sigmoid_inplace(erase, writes * word);
    *alpha += candidates_x[writes * word];
    sigmoid_inplace(alpha, 1);
    for (int64_t k = 0; k < writes * word; k++) candidate[k] += *alpha * candidates_x[k];
    for (int64_t k = 0; k < writes * word; k++) candidate[k] = candidate[k] > 0 ? candidate[k] : 0;
    for (int64_t m = 0; m < word; m++) {
        REAL *restrict row = contents + m * n;
        memcpy(row, old.contents + m * n, sizeof(REAL) * n);
        for (int64_t h = 0; h < writes; h++)
            for (int64_t i = 0; i < n; i++) row[i] *= 1 - content_w[h * n + i] * erase[h * word + m];
        for (int64_t h = 0; h < writes; h++) axpy(row, candidate[h * word + m], content_w + h * n, n);
    }
    NAME(norms)(contents, tape->squares, 1, word, n, new_norms);
    for (int64_t h = 0; h < tape->reads; h++) {
        address(tape, at, h, (Slots){contents, new_norms});
        const REAL *w = tape->w + (at * heads + h) * n;
        for (int64_t j = 0; j < slot_width(tape); j++) *read++ = dot(w, row_of(tape, contents, j), tape->slots);
    }
}

/* Steps first ... last - 1 of the batch entries begin ... end - 1. `gates` contains the input's part of the
   pre-activations, with its bias. */
void NAME(forward)(const Tape *tape, int64_t first, int64_t last, int64_t begin, int64_t end) {
    const int64_t rows = end - begin, size = tape->hidden, read = tape->reads * slot_width(tape),
                  width = interface_of(tape);
    REAL sums[rows * 3 * size];
    for (int64_t t = first; t < last; t++) {
        const int64_t at = t * tape->batch + begin, next = at + tape->batch;
        REAL *gates = tape->gates + at * 3 * size, *features = tape->features + at * (size + read);
        REAL *parameters = tape->parameters + at * width;
        for (int64_t r = 0; r < rows; r++) {
            memcpy(sums + r * 3 * size, tape->recurrent_bias, sizeof(REAL) * 3 * size);
            memcpy(parameters + r * width, tape->bias, sizeof(REAL) * width);
            if (!starts_at(tape, at + r)) continue;
            memset(tape->hidden_in + (at + r) * size, 0, sizeof(REAL) * size);
            memset(tape->read_in + (at + r) * read, 0, sizeof(REAL) * read);
        }
        product(tape->read_in + at * read, read, rows, tape->from_read, read, 3 * size, gates, 3 * size);
        product(tape->hidden_in + at * size, size, rows, tape->recurrent, size, 3 * size, sums, 3 * size);
        for (int64_t r = 0; r < rows; r++) {
            REAL *restrict gate = gates + r * 3 * size, *restrict candidate = gate + 2 * size,
                           *hidden = features + r * (size + read);
            const REAL *restrict recurrent_sum = sums + r * 3 * size, *old_hidden = tape->hidden_in + (at + r) * size;
            for (int64_t k = 0; k < 2 * size; k++) gate[k] += recurrent_sum[k];
            sigmoid_inplace(gate, 2 * size);
            for (int64_t k = 0; k < size; k++) candidate[k] += gate[k] * recurrent_sum[2 * size + k];
            tanh_inplace(candidate, size);
            for (int64_t k = 0; k < size; k++)
                hidden[k] = candidate[k] + gate[size + k] * (old_hidden[k] - candidate[k]);
            memcpy(tape->n_hidden + (at + r) * size, recurrent_sum + 2 * size, sizeof(REAL) * size);
            memcpy(tape->hidden_in + (next + r) * size, hidden, sizeof(REAL) * size);
        }
        product(features, size + read, rows, tape->interface, size, width, parameters, width);
        for (int64_t r = 0; r < rows; r++) {
            write_and_read(tape, begin + r, at + r, features + r * (size + read) + size);
            memcpy(tape->read_in + (next + r) * read, features + r * (size + read) + size, sizeof(REAL) * read);
        }
    }
}

/* Backward pass of `address`: computes d_key from d_w; adds to d_contents and d_addresses. */
static void address_backward(
    const Tape *tape, int64_t at, int64_t head, Slots slots, const REAL *restrict d_w, REAL *d_contents,
    REAL *d_addresses, REAL *d_key) {
    const int64_t n = tape->padded, width = slot_width(tape), offset = (at * heads_of(tape) + head) * n;
    const REAL *key = tape->parameters + at * interface_of(tape) + head * head_size(tape), *beta = key + width;
    const REAL *restrict w = tape->w + offset, *restrict cosine = tape->cosines + offset, *v = tape->usage + offset;
    const REAL norm = inverse_norm(key, width), strength = *beta, inner_product = dot(d_w, w, n);
    REAL d_logit[n], d_dot[n], norm_term[n], *d_beta = d_key + width;
    for (int64_t i = 0; i < n; i++) d_logit[i] = w[i] * (d_w[i] - inner_product);
    const REAL d_strength = dot(d_logit, cosine, n), key_norm_term = norm * norm * strength * d_strength;
    *d_beta = d_strength * softplus_derivative(strength - 1);
    if (tape->lru) d_beta[1] = -dot(d_logit, v, n) * beta[1] * (1 - beta[1]);
    for (int64_t i = 0; i < n; i++) d_dot[i] = strength * norm * d_logit[i] * slots.norms[i];
    for (int64_t i = 0; i < n; i++) norm_term[i] = strength * d_logit[i] * cosine[i] * slots.norms[i] * slots.norms[i];
    for (int64_t j = 0; j < width; j++) {
        const REAL *restrict row = row_of(tape, slots.contents, j), k = key[j];
        REAL *restrict d_row = j < tape->address ? d_addresses + j * n : d_contents + (j - tape->address) * n;
        d_key[j] = dot(d_dot, row, n) - key_norm_term * k;
        for (int64_t i = 0; i < n; i++) d_row[i] += d_dot[i] * k - norm_term[i] * row[i];
    }
}

/* Backward pass of `write_and_read` from the gradient of the read-out; d_contents of the state after the step is
   overwritten by that of the state before it. */
static void write_and_read_backward(
    const Tape *tape, int64_t b, int64_t at, const REAL *d_read, int last, REAL *d_parameters, REAL *d_candidates_x) {
    const int64_t n = tape->padded, word = tape->word, writes = tape->writes, reads = tape->reads,
                  heads = heads_of(tape);
    const Slots old = before(tape, b, at), current = {tape->contents + at * word * n, tape->norms + at * n};
    const REAL *erase = tape->parameters + at * interface_of(tape) + heads * head_size(tape),
               *candidate = erase + writes * word;
    const REAL alpha = candidate[writes * word], *candidates_x = tape->candidates_x + at * (writes * word + 1);
    REAL *d_erase = d_parameters + heads * head_size(tape), *d_candidate = d_erase + writes * word, d_alpha = 0;
    REAL *d_contents = tape->d_contents + b * word * n, *d_addresses = tape->d_addresses + b * tape->address * n;
    REAL d_w[heads * n], content_w[heads * n], others[n];
    for (int64_t h = 0; h < heads; h++) with_content(tape, tape->w + (at * heads + h) * n, content_w + h * n);
    if (last)
        memcpy(d_w, tape->d_w + b * heads * n, sizeof d_w);
    else
        memset(d_w, 0, sizeof d_w);

    for (int64_t h = 0; h < reads; h++) {
        for (int64_t j = 0; j < slot_width(tape); j++)
            axpy(d_w + h * n, *(d_read + j), row_of(tape, current.contents, j), tape->slots);
        address_backward(
            tape, at, h, current, d_w + h * n, d_contents, d_addresses, d_parameters + h * head_size(tape));
        for (int64_t j = 0; j < slot_width(tape); j++, d_read++)
            axpy(
                j < tape->address ? d_addresses + j * n : d_contents + (j - tape->address) * n, *d_read,
                content_w + h * n, n);
    }

    const REAL *w = content_w + reads * n;
    for (int64_t m = 0; m < word; m++) {
        REAL *restrict d_row = d_contents + m * n;
        const REAL *restrict row = old.contents + m * n;
        for (int64_t h = 0; h < writes; h++) {
            const REAL e = erase[h * word + m], c = candidate[h * word + m];
            for (int64_t i = 0; i < n; i++) others[i] = d_row[i] * row[i];
            for (int64_t other = 0; other < writes; other++)
                for (int64_t i = 0; other != h && i < n; i++)
                    others[i] *= 1 - w[other * n + i] * erase[other * word + m];
            REAL *restrict d_weights = d_w + (reads + h) * n;
            for (int64_t i = 0; i < tape->slots; i++) d_weights[i] += c * d_row[i] - e * others[i];
            d_erase[h * word + m] = -dot(w + h * n, others, n) * e * (1 - e);
            d_candidate[h * word + m] = c > 0 ? dot(w + h * n, d_row, n) : 0;
        }
        for (int64_t h = 0; h < writes; h++)
            for (int64_t i = 0; i < n; i++) d_row[i] *= 1 - w[h * n + i] * erase[h * word + m];
    }
    for (int64_t k = 0; k < writes * word; k++)
        d_candidates_x[k] = alpha * d_candidate[k], d_alpha += candidates_x[k] * d_candidate[k];
    d_candidate[writes * word] = d_candidates_x[writes * word] = d_alpha * alpha * (1 - alpha);
    for (int64_t h = reads; h < heads; h++)
        address_backward(tape, at, h, old, d_w + h * n, d_contents, d_addresses, d_parameters + h * head_size(tape));
    if (starts_at(tape, at)) memset(d_contents, 0, sizeof(REAL) * word * n);
}

/* Backward pass over all steps, from the last, `last` - 1, to the first. */
void NAME(backward)(const Tape *tape, int64_t first, int64_t last, int64_t begin, int64_t end) {
    const int64_t rows = end - begin, size = tape->hidden, read = tape->reads * slot_width(tape),
                  width = interface_of(tape);
    REAL *d_hidden = tape->d_hidden + begin * size, *d_read = tape->d_read + begin * read;
    for (int64_t t = last - 1; t >= first; t--) {
        const int64_t at = t * tape->batch + begin, x_size = tape->writes * tape->word + 1;
        REAL *d_gates = tape->d_gates + at * 3 * size, *d_sums = tape->d_recurrent + at * 3 * size;
        REAL *d_parameters = tape->d_parameters + at * width;
        for (int64_t r = 0; r < rows; r++) {
            const REAL *d_out = tape->d_features + (at + r) * (size + read);
            axpy(d_hidden + r * size, 1, d_out, size);
            axpy(d_read + r * read, 1, d_out + size, read);
            write_and_read_backward(
                tape, begin + r, at + r, d_read + r * read, t == last - 1, d_parameters + r * width,
                tape->d_candidates_x + (at + r) * x_size);
        }
        product(d_parameters, width, rows, tape->interface, width, size, d_hidden, size);
        for (int64_t r = 0; r < rows; r++) {
            const REAL *gate = tape->gates + (at + r) * 3 * size, *z = gate + size, *n = z + size;
            const REAL *n_hidden = tape->n_hidden + (at + r) * size, *old_hidden = tape->hidden_in + (at + r) * size;
            REAL *d_gate = d_gates + r * 3 * size, *d_sum = d_sums + r * 3 * size, *d = d_hidden + r * size;
            for (int64_t k = 0; k < size; k++) {
                const REAL d_n = d[k] * (1 - z[k]) * (1 - n[k] * n[k]);
                d_gate[k] = d_sum[k] = d_n * n_hidden[k] * gate[k] * (1 - gate[k]);
                d_gate[size + k] = d_sum[size + k] = d[k] * (old_hidden[k] - n[k]) * z[k] * (1 - z[k]);
                d_gate[2 * size + k] = d_n, d_sum[2 * size + k] = d_n * gate[k];
                d[k] *= z[k];
            }
        }
        memset(d_read, 0, sizeof(REAL) * rows * read);
        product(d_gates, 3 * size, rows, tape->from_read, 3 * size, read, d_read, read);
        product(d_sums, 3 * size, rows, tape->recurrent, 3 * size, size, d_hidden, size);
        for (int64_t r = 0; r < rows; r++) {
            if (!starts_at(tape, at + r)) continue;
            memset(d_hidden + r * size, 0, sizeof(REAL) * size);
            memset(d_read + r * read, 0, sizeof(REAL) * read);
        }
    }
}
