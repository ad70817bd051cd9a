/* The DNC over time, forward and backward; see fast_native.py. Equations and symbols as in memory.py.

   Vectors are rows. State arrays have T + 1 steps; step 0 is the state before the sequence. Where an episode starts,
   the previous state is replaced by zeros. Arrays over slots are padded with zeros to `lead` elements, whole SIMD
   vectors. The memory is transposed, [W, lead]; a linkage is [rows, lead]. A call processes a block of environments over
   several steps, so that their linkages and the weights stay in the cache. Compiled twice, for REAL float and double. */

#include "fast_addressing.h"
#include "denormals.h"

#define MAX_LAYERS 8

typedef struct {
    int64_t batch, hidden, layers, slots, word, reads, writes, width, lead, rows; /* width: of the interface vector */
    /* if store_linkages, the linkage is stored before every checkpoint_interval-th step */
    int64_t checkpoint_interval, store_linkages;
    int64_t oneplus, code_order; /* strengths are at least 1; read modes in the order of the released code */
    int64_t stop_usage_gradient; /* no gradient from the usage to the write weights */
    double clip, clip_gradients; /* may be infinite */
    const uint8_t *starts;       /* [T, B], or NULL */
    const REAL *zeros;           /* the size of the largest state array of an environment */
    /* packed weights of each layer: for the read vectors (layer 0: and its hidden state), h^l_{t-1} and h^{l-1}_t */
    const REAL *w_read[MAX_LAYERS], *w_hidden[MAX_LAYERS], *w_below[MAX_LAYERS];
    const REAL *interface;            /* packed */
    const REAL *interface_bias;       /* or NULL */
    REAL *gates, *tanh_cells, *cells; /* [T, B, L, 4 d_h], [T, B, L, d_h], [T + 1, B, L, d_h] */
    REAL *before, *after, *vectors;   /* read vectors and hidden states, [T, B, R W + L d_h]; [T, B, width] */
    REAL *memory, *norms, *usage, *precedence, *write_weights, *read_weights; /* [T + 1, B, ...] */
    REAL *write_content, *read_content;                                       /* [T, B, H, lead], [T, B, R, lead] */
    int32_t *order;                                                           /* [T, B, H, lead] */
    REAL *linkage, *checkpoints; /* [B, H, rows, lead]; [checkpoints, B, H, rows, lead] */
    /* for the backward pass only */
    const REAL *d_after;       /* gradient of `after` */
    REAL *d_gates, *d_vectors; /* [T, B, ...] */
    REAL *d_carried, *d_cell, *d_memory, *d_usage, *d_precedence, *d_write_weights, *d_read_weights,
        *d_linkage; /* gradients of the state, [B, ...] */
} Tape;

/* The parts of an interface vector or of its gradient, in their order. */
typedef struct {
    REAL *keys, *strengths, *write_keys, *write_strengths, *erase, *vectors, *free, *allocate, *write, *modes;
} Parts;

static Parts parts_of(const Tape *tape, REAL *x) {
    const int64_t reads = tape->reads, writes = tape->writes, words = writes * tape->word;
    Parts p = {.keys = x};
    p.strengths = p.keys + reads * tape->word;
    p.write_keys = p.strengths + reads;
    p.write_strengths = p.write_keys + words;
    p.erase = p.write_strengths + writes;
    p.vectors = p.erase + words;
    p.free = p.vectors + words;
    p.allocate = p.free + reads;
    p.write = p.allocate + writes;
    p.modes = p.write + writes;
    return p;
}

/* Indices into the modes of a read head: backward and forward for write head h, and content. */
static int64_t backward_mode_at(int64_t h) { return h; }
static int64_t forward_mode_at(const Tape *tape, int64_t h) { return tape->writes + h + (tape->code_order ? 0 : 1); }
static int64_t content_mode_at(const Tape *tape) { return tape->writes * (tape->code_order ? 2 : 1); }

/* The slots of a batch entry before or after a step. */
typedef struct {
    REAL *memory, *norms, *usage, *precedence, *write_weights, *read_weights;
} Slots;

static Slots slots_at(const Tape *tape, int64_t at) {
    const int64_t n = tape->lead;
    return (Slots){
        tape->memory + at * tape->word * n,
        tape->norms + at * n,
        tape->usage + at * n,
        tape->precedence + at * tape->writes * n,
        tape->write_weights + at * tape->writes * n,
        tape->read_weights + at * tape->reads * n,
    };
}

static int starts_at(const Tape *tape, int64_t at) { return tape->starts && tape->starts[at]; }

static Slots slots_before(const Tape *tape, int64_t at) {
    REAL *zeros = (REAL *)tape->zeros;
    return starts_at(tape, at) ? (Slots){zeros, zeros, zeros, zeros, zeros, zeros} : slots_at(tape, at);
}

static REAL *take_scratch(REAL **scratch, int64_t numbers) {
    REAL *array = *scratch;
    *scratch += numbers;
    return array;
}

/* Applies the activations of the interface vector in place; softplus to strengths. */
static void activate(const Tape *tape, Parts x) {
    const int64_t modes = 2 * tape->writes + 1;
    for (int64_t i = 0; i < tape->reads; i++) x.strengths[i] = softplus(x.strengths[i]);
    for (int64_t h = 0; h < tape->writes; h++) x.write_strengths[h] = softplus(x.write_strengths[h]);
    sigmoid_inplace(x.erase, tape->writes * tape->word);
    sigmoid_inplace(x.free, tape->reads + 2 * tape->writes);
    for (int64_t i = 0; i < tape->reads; i++) {
        REAL *mode = x.modes + i * modes, maximum = mode[0], sum = 0;
        for (int64_t k = 1; k < modes; k++) maximum = mode[k] > maximum ? mode[k] : maximum;
        for (int64_t k = 0; k < modes; k++) sum += mode[k] = exp_nonpositive(mode[k] - maximum);
        for (int64_t k = 0; k < modes; k++) mode[k] /= sum;
    }
}

/* a_t of each write head, and the usage after the previous heads, [H, lead] each. */
static void
allocations(const Tape *tape, Parts x, const REAL *usage, int32_t *order, REAL *head_usage, REAL *a, Entry *sort) {
    const int64_t n = tape->lead;
    memcpy(head_usage, usage, sizeof(REAL) * n);
    for (int64_t h = 0; h < tape->writes; h++, head_usage += n, a += n, order += n) {
        memset(a + tape->slots, 0, sizeof(REAL) * (n - tape->slots));
        if (sort) order_slots(head_usage, tape->slots, order, sort);
        allocation(head_usage, order, tape->slots, a);
        const REAL gate = x.allocate[h] * x.write[h];
        for (int64_t k = 0; h + 1 < tape->writes && k < n; k++)
            head_usage[n + k] = head_usage[k] + (1 - head_usage[k]) * gate * a[k];
    }
}

/* Step t of the slots of entry b, from its interface vector. */
static void advance_slots(const Tape *tape, int64_t t, int64_t b, REAL *scratch) {
    const int64_t n = tape->lead, reads = tape->reads, writes = tape->writes, words = tape->word, slots = tape->slots;
    const int64_t at = t * tape->batch + b, modes = 2 * writes + 1, linkage_size = tape->rows * n;
    const Parts x = parts_of(tape, tape->vectors + at * tape->width);
    const Slots previous = slots_before(tape, at), current = slots_at(tape, at + tape->batch);
    REAL *linkage = tape->linkage + b * writes * linkage_size, *write_content = tape->write_content + at * writes * n;
    REAL *head_usage = take_scratch(&scratch, writes * n), *a = take_scratch(&scratch, writes * n);
    REAL *unwritten = take_scratch(&scratch, n), *psi = take_scratch(&scratch, n);
    REAL *l_q = take_scratch(&scratch, writes * reads * n), *lt_q = take_scratch(&scratch, writes * reads * n);
    activate(tape, x);

    /* where to write: usage, allocation, content */
    retention(previous.write_weights, NULL, writes, -1, n, unwritten);
    retention(previous.read_weights, x.free, reads, -1, n, psi);
    for (int64_t k = 0; k < n; k++) {
        const REAL total_write = 1 - unwritten[k];
        current.usage[k] = (previous.usage[k] + total_write - previous.usage[k] * total_write) * psi[k];
    }
    allocations(tape, x, current.usage, tape->order + at * writes * n, head_usage, a, (Entry *)scratch);
    for (int64_t h = 0; h < writes; h++) {
        REAL *restrict c = write_content + h * n, *restrict w = current.write_weights + h * n;
        const REAL strength = x.write_strengths[h] + tape->oneplus, allocation_gate = x.allocate[h], gate = x.write[h];
        content(previous.memory, previous.norms, x.write_keys + h * words, strength, words, slots, n, c);
        for (int64_t k = 0; k < n; k++) w[k] = gate * (c[k] + allocation_gate * (a[h * n + k] - c[k]));
    }

    /* erase and write */
    for (int64_t k = 0; k < n; k++) current.norms[k] = NORM_EPS;
    for (int64_t j = 0; j < words; j++)
        for (int64_t k = 0; k < n; k += WIDE) {
            const Wide old_m = GET(previous.memory + j * n + k);
            Wide keep = 1 - (Wide){0}, add = {0};
            for (int64_t h = 0; h < writes; h++) {
                const Wide w = GET(current.write_weights + h * n + k);
                keep *= 1 - w * x.erase[h * words + j], add += w * x.vectors[h * words + j];
            }
            const Wide m = old_m * keep + add;
            PUT(current.memory + j * n + k) = m;
            PUT(current.norms + k) = GET(current.norms + k) + m * m;
        }
    for (int64_t k = 0; k < n; k++) current.norms[k] = 1 / (REAL)sqrt(current.norms[k]);

    /* links and precedence */
    for (int64_t h = 0; h < writes; h++) {
        const REAL *w = current.write_weights + h * n, *p = previous.precedence + h * n;
        const Links links = {
            starts_at(tape, at) ? tape->zeros : linkage + h * linkage_size,
            linkage + h * linkage_size,
            n,
            tape->rows,
            w,
            p,
            previous.read_weights,
            l_q + h * reads * n,
            lt_q + h * reads * n,
        };
        update_and_follow_links(&links, reads);
        REAL retained = 1;
        for (int64_t k = 0; k < n; k++) retained -= w[k];
        for (int64_t k = 0; k < n; k++) current.precedence[h * n + k] = retained * p[k] + w[k];
    }

    /* read */
    for (int64_t i = 0; i < reads; i++) {
        const REAL *mode = x.modes + i * modes;
        REAL *restrict c = tape->read_content + (at * reads + i) * n, *restrict w = current.read_weights + i * n;
        REAL *out = tape->after + at * (reads * words + tape->layers * tape->hidden) + i * words;
        content(current.memory, current.norms, x.keys + i * words, x.strengths[i] + tape->oneplus, words, slots, n, c);
        for (int64_t k = 0; k < n; k++) w[k] = mode[content_mode_at(tape)] * c[k];
        for (int64_t h = 0; h < writes; h++) {
            const REAL pi_forward = mode[forward_mode_at(tape, h)], pi_backward = mode[backward_mode_at(h)];
            const REAL *restrict f = l_q + (h * reads + i) * n, *restrict g = lt_q + (h * reads + i) * n;
            for (int64_t k = 0; k < n; k++) w[k] += pi_forward * f[k] + pi_backward * g[k];
        }
        for (int64_t j = 0; j < words; j++) out[j] = dot(current.memory + j * n, w, n);
    }
}

static REAL clamp(REAL x, REAL clip) { return x > clip ? clip : x < -clip ? -clip : x; }

/* Steps first ... last - 1 of the batch entries begin ... end - 1. `gates` contains the input's part of the
   pre-activations, with biases; `scratch`: `SlotLoops._scratch_size` elements, see fast_native.py. */
void NAME(forward)(const Tape *tape, int64_t first, int64_t last, int64_t begin, int64_t end, REAL *scratch) {
    const int64_t count = end - begin, d_h = tape->hidden, layers = tape->layers, width = tape->width;
    const int64_t read_size = tape->reads * tape->word, features = read_size + layers * d_h,
                  gates_size = layers * 4 * d_h;
    const int64_t linkage_size = tape->writes * tape->rows * tape->lead;
    const REAL clip = (REAL)tape->clip;
    const unsigned flags = flush_denormals();
    for (int64_t t = first; t < last; t++) {
        const int64_t at = t * tape->batch + begin, next = at + tape->batch;
        REAL *before = tape->before + at * features, *after = tape->after + at * features,
             *vectors = tape->vectors + at * width;
        if (tape->store_linkages && t % tape->checkpoint_interval == 0)
            memcpy(
                tape->checkpoints + (t / tape->checkpoint_interval * tape->batch + begin) * linkage_size,
                tape->linkage + begin * linkage_size, sizeof(REAL) * count * linkage_size);

        /* controller */
        for (int64_t r = 0; r < count; r++) {
            if (t > 0) memcpy(before + r * features, after + (r - tape->batch) * features, sizeof(REAL) * features);
            if (starts_at(tape, at + r)) memset(before + r * features, 0, sizeof(REAL) * features);
        }
        for (int64_t l = 0; l < layers; l++) {
            REAL *gates = tape->gates + at * gates_size + l * 4 * d_h;
            product(
                before, features, count, tape->w_read[l], l ? read_size : read_size + d_h, 4 * d_h, gates, gates_size);
            if (l)
                product(
                    before + read_size + l * d_h, features, count, tape->w_hidden[l], d_h, 4 * d_h, gates, gates_size);
            if (l)
                product(
                    after + read_size + (l - 1) * d_h, features, count, tape->w_below[l], d_h, 4 * d_h, gates,
                    gates_size);
            for (int64_t r = 0; r < count; r++) {
                REAL *restrict i = gates + r * gates_size, *restrict f = i + d_h, *restrict g = f + d_h,
                               *restrict o = g + d_h;
                REAL *restrict h = after + r * features + read_size + l * d_h;
                REAL *restrict tanh_cell = tape->tanh_cells + ((at + r) * layers + l) * d_h;
                REAL *restrict cell = tape->cells + ((next + r) * layers + l) * d_h;
                const REAL *restrict old_cell = tape->cells + ((at + r) * layers + l) * d_h;
                if (starts_at(tape, at + r)) old_cell = tape->zeros;
                sigmoid_inplace(i, 2 * d_h);
                tanh_inplace(g, d_h);
                sigmoid_inplace(o, d_h);
                for (int64_t k = 0; k < d_h; k++)
                    tanh_cell[k] = cell[k] = clamp(f[k] * old_cell[k] + i[k] * g[k], clip);
                tanh_inplace(tanh_cell, d_h);
                for (int64_t k = 0; k < d_h; k++) h[k] = clamp(o[k] * tanh_cell[k], clip);
            }
        }

        /* interface, slots */
        for (int64_t r = 0; r < count; r++)
            if (tape->interface_bias)
                memcpy(vectors + r * width, tape->interface_bias, sizeof(REAL) * width);
            else
                memset(vectors + r * width, 0, sizeof(REAL) * width);
        product(after + read_size, features, count, tape->interface, layers * d_h, width, vectors, width);
        for (int64_t b = begin; b < end; b++) advance_slots(tape, t, b, scratch);
    }
    restore_flags(flags);
}

#include "fast_slots_backward.h"

/* Backward pass over the steps first ... last - 1 for the batch entries begin ... end - 1; `first` has a stored linkage.
   The gradients of the state after `last` are overwritten by those of the state before `first`; each step adds its d_after.
   `linkages`: buffer for the linkages of `last` - `first` - 1 steps, [end - begin, steps, H, rows, lead]. */
void NAME(backward)(
    const Tape *tape, int64_t first, int64_t last, int64_t begin, int64_t end, REAL *scratch, REAL *linkages) {
    const int64_t count = end - begin, d_h = tape->hidden, layers = tape->layers, width = tape->width, n = tape->lead;
    const int64_t read_size = tape->reads * tape->word, features = read_size + layers * d_h,
                  gates_size = layers * 4 * d_h;
    const int64_t head_size = tape->rows * n, linkage_size = tape->writes * head_size;
    const REAL clip = (REAL)tape->clip, gradient_limit = (REAL)tape->clip_gradients;
    const unsigned flags = flush_denormals();
    const REAL *checkpoints =
        tape->checkpoints + (first / tape->checkpoint_interval * tape->batch + begin) * linkage_size;

    /* recompute the linkages after all steps except the last: [B, steps, H, rows, lead] */
    const int64_t linkage_count = last - first - 1;
    for (int64_t b = begin; b < end; b++)
        for (int64_t h = 0; h < tape->writes; h++)
            for (int64_t i = 0; i < tape->rows; i += ROWS) { /* rows outside the loop over time stay in the cache */
                const REAL *before = checkpoints + (b - begin) * linkage_size + h * head_size;
                for (int64_t t = first; t + 1 < last; t++) {
                    const int64_t at = t * tape->batch + b;
                    REAL *after = linkages + ((b - begin) * linkage_count + t - first) * linkage_size + h * head_size;
                    update_linkage_rows(
                        starts_at(tape, at) ? tape->zeros : before, after,
                        slots_at(tape, at + tape->batch).write_weights + h * n,
                        slots_before(tape, at).precedence + h * n, i, n);
                    before = after;
                }
            }

    for (int64_t t = last - 1; t >= first; t--) {
        const int64_t at = t * tape->batch + begin, next = at + tape->batch;
        REAL *d_carried = tape->d_carried + begin * features, *d_vectors = tape->d_vectors + at * width;
        for (int64_t k = 0; k < count * features; k++) d_carried[k] += tape->d_after[at * features + k];
        for (int64_t r = 0; r < count; r++) {
            const REAL *linkage = t == first ? checkpoints + r * linkage_size
                                             : linkages + (r * linkage_count + t - 1 - first) * linkage_size;
            slots_backward(tape, t, begin + r, d_carried + r * features, linkage, scratch);
            memset(d_carried + r * features, 0, sizeof(REAL) * read_size);
        }
        product(d_vectors, width, count, tape->interface, width, layers * d_h, d_carried + read_size, features);

        /* controller */
        for (int64_t l = layers - 1; l >= 0; l--) {
            REAL *d_gates = tape->d_gates + at * gates_size + l * 4 * d_h;
            for (int64_t r = 0; r < count; r++) {
                const int64_t offset = ((at + r) * layers + l) * d_h;
                const REAL *restrict i = tape->gates + (at + r) * gates_size + l * 4 * d_h, *restrict f = i + d_h;
                const REAL *restrict g = f + d_h, *restrict o = g + d_h,
                                     *restrict tanh_cell = tape->tanh_cells + offset;
                const REAL *restrict old_cell = starts_at(tape, at + r) ? tape->zeros : tape->cells + offset;
                const REAL *restrict cell = tape->cells + ((next + r) * layers + l) * d_h;
                REAL *restrict di = d_gates + r * gates_size, *restrict df = di + d_h, *restrict dg = df + d_h;
                REAL *restrict d_o = dg + d_h, *restrict dc = tape->d_cell + ((begin + r) * layers + l) * d_h;
                REAL *restrict dh = d_carried + r * features + read_size + l * d_h;
                for (int64_t k = 0; k < d_h; k++) {
                    const REAL h = o[k] * tanh_cell[k];
                    REAL d = clamp(dh[k], gradient_limit);
                    d = h > clip || h < -clip ? 0 : d;
                    REAL d_new_cell = dc[k] + d * o[k] * (1 - tanh_cell[k] * tanh_cell[k]);
                    d_new_cell = cell[k] >= clip || cell[k] <= -clip ? 0 : d_new_cell;
                    di[k] = d_new_cell * g[k] * i[k] * (1 - i[k]);
                    df[k] = d_new_cell * old_cell[k] * f[k] * (1 - f[k]);
                    dg[k] = d_new_cell * i[k] * (1 - g[k] * g[k]);
                    d_o[k] = d * tanh_cell[k] * o[k] * (1 - o[k]);
                    dc[k] = d_new_cell * f[k];
                    dh[k] = 0;
                }
            }
            if (l)
                product(
                    d_gates, gates_size, count, tape->w_below[l], 4 * d_h, d_h, d_carried + read_size + (l - 1) * d_h,
                    features);
            if (l)
                product(
                    d_gates, gates_size, count, tape->w_hidden[l], 4 * d_h, d_h, d_carried + read_size + l * d_h,
                    features);
            product(
                d_gates, gates_size, count, tape->w_read[l], 4 * d_h, l ? read_size : read_size + d_h, d_carried,
                features);
        }
        for (int64_t r = 0; r < count; r++) {
            if (!starts_at(tape, at + r)) continue;
            memset(d_carried + r * features, 0, sizeof(REAL) * features);
            memset(tape->d_cell + (begin + r) * layers * d_h, 0, sizeof(REAL) * layers * d_h);
        }
    }
    restore_flags(flags);
}
