/* The DNC over time, forward and backward; see fast_native.py. Equations and symbols as in memory.py.

   Vectors are rows. State arrays have T + 1 steps; step 0 is the state before the sequence. Where an episode starts,
   zeros are used instead. Arrays over slots are padded with zeros to `lead` numbers, whole SIMD vectors. The memory is
   transposed, [W, lead]; a linkage is [rows, lead]. A call processes a block of environments over several steps, so
   that their linkages and the weights stay in the cache. Compiled twice, for REAL float and double. */

#include "fast_addressing.h"
#include "denormals.h"

#define MAX_LAYERS 8

typedef struct {
    int64_t batch, hidden, layers, slots, word, reads, writes, width, lead, rows; /* width: of the interface vector */
    int64_t checkpoint_interval, keep; /* the linkage is stored before every checkpoint_interval-th step if `keep` */
    int64_t oneplus, code_order;    /* strengths of at least 1; order of the read modes in the released code */
    int64_t stop_usage_gradient;    /* no gradient from the usage to the write weights */
    double clip, clip_gradients;    /* may be infinite */
    const uint8_t *starts;          /* [T, B], or NULL */
    const REAL *zeros;              /* as many zeros as the largest state array of an environment has */
    /* packed weights of a layer: from read vectors (layer 0: and from its hidden state), h^l_{t-1}, h^{l-1}_t */
    const REAL *w_read[MAX_LAYERS], *w_hidden[MAX_LAYERS], *w_below[MAX_LAYERS];
    const REAL *interface;                                         /* packed */
    const REAL *interface_bias;                                    /* or NULL */
    REAL *gates, *tanh_cells, *cells;                              /* [T, B, L, 4 d_h], [T, B, L, d_h], [T + 1, B, L, d_h] */
    REAL *before, *after, *vectors;                                /* [T, B, R W + L d_h], twice; [T, B, width] */
    REAL *memory, *norms, *usage, *precedence, *written, *read;    /* [T + 1, B, ...] */
    REAL *write_content, *read_content;                            /* [T, B, H, lead], [T, B, R, lead] */
    int32_t *order;                                                /* [T, B, H, lead] */
    REAL *linkage, *checkpoints;                 /* [B, H, rows, lead]; [checkpoints, B, H, rows, lead] */
    /* for the backward pass only */
    const REAL *d_after;                                           /* gradient of `after` */
    REAL *d_gates, *d_vectors;                                     /* [T, B, ...] */
    REAL *d_carried, *d_cell, *d_memory, *d_usage, *d_precedence, *d_written, *d_read, *d_linkage; /* of a state */
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

/* Indices in the modes of a read head: backward and forward of write head h, and content. */
static int64_t behind_at(int64_t h) { return h; }
static int64_t ahead_at(const Tape *tape, int64_t h) { return tape->writes + h + (tape->code_order ? 0 : 1); }
static int64_t content_at(const Tape *tape) { return tape->writes * (tape->code_order ? 2 : 1); }

/* The slots of a batch entry before or after a step. */
typedef struct {
    REAL *memory, *norms, *usage, *precedence, *written, *read;
} Slots;

static Slots slots_at(const Tape *tape, int64_t at) {
    const int64_t n = tape->lead;
    return (Slots){
        tape->memory + at * tape->word * n,       tape->norms + at * n,
        tape->usage + at * n,                     tape->precedence + at * tape->writes * n,
        tape->written + at * tape->writes * n,    tape->read + at * tape->reads * n,
    };
}

static int starts_at(const Tape *tape, int64_t at) { return tape->starts && tape->starts[at]; }

static Slots slots_before(const Tape *tape, int64_t at) {
    REAL *zeros = (REAL *)tape->zeros;
    return starts_at(tape, at) ? (Slots){zeros, zeros, zeros, zeros, zeros, zeros} : slots_at(tape, at);
}

static REAL *take_scratch(REAL **scratch, int64_t numbers) {
    REAL *here = *scratch;
    *scratch += numbers;
    return here;
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
static void allocations(
    const Tape *tape, Parts x, const REAL *usage, int32_t *order, REAL *head_usage, REAL *a, Entry *sort) {
    const int64_t n = tape->lead;
    memcpy(head_usage, usage, sizeof(REAL) * n);
    for (int64_t h = 0; h < tape->writes; h++, head_usage += n, a += n, order += n) {
        memset(a + tape->slots, 0, sizeof(REAL) * (n - tape->slots));
        if (sort) order_slots(head_usage, tape->slots, order, sort);
        allocation(head_usage, order, tape->slots, a);
        const REAL gate = x.allocate[h] * x.write[h];
        for (int64_t k = 0; h + 1 < tape->writes && k < n; k++) head_usage[n + k] = head_usage[k] + (1 - head_usage[k]) * gate * a[k];
    }
}

/* Step t of the slots of entry b; its interface vector is there. */
static void advance_slots(const Tape *tape, int64_t t, int64_t b, REAL *scratch) {
    const int64_t n = tape->lead, reads = tape->reads, writes = tape->writes, words = tape->word, slots = tape->slots;
    const int64_t at = t * tape->batch + b, modes = 2 * writes + 1, size = tape->rows * n;
    const Parts x = parts_of(tape, tape->vectors + at * tape->width);
    const Slots was = slots_before(tape, at), now = slots_at(tape, at + tape->batch);
    REAL *linkage = tape->linkage + b * writes * size, *content_of = tape->write_content + at * writes * n;
    REAL *head_usage = take_scratch(&scratch, writes * n), *a = take_scratch(&scratch, writes * n);
    REAL *kept = take_scratch(&scratch, n), *psi = take_scratch(&scratch, n);
    REAL *to = take_scratch(&scratch, writes * reads * n), *from = take_scratch(&scratch, writes * reads * n);
    activate(tape, x);

    /* where to write: usage, allocation, content */
    kept_by(was.written, NULL, writes, -1, n, kept);
    kept_by(was.read, x.free, reads, -1, n, psi);
    for (int64_t k = 0; k < n; k++) {
        const REAL written = 1 - kept[k];
        now.usage[k] = (was.usage[k] + written - was.usage[k] * written) * psi[k];
    }
    allocations(tape, x, now.usage, tape->order + at * writes * n, head_usage, a, (Entry *)scratch);
    for (int64_t h = 0; h < writes; h++) {
        REAL *restrict c = content_of + h * n, *restrict w = now.written + h * n;
        const REAL strength = x.write_strengths[h] + tape->oneplus, by_use = x.allocate[h], gate = x.write[h];
        content(was.memory, was.norms, x.write_keys + h * words, strength, words, slots, n, c);
        for (int64_t k = 0; k < n; k++) w[k] = gate * (c[k] + by_use * (a[h * n + k] - c[k]));
    }

    /* erase and write */
    for (int64_t k = 0; k < n; k++) now.norms[k] = NORM_EPS;
    for (int64_t j = 0; j < words; j++)
        for (int64_t k = 0; k < n; k += WIDE) {
            const Wide old = GET(was.memory + j * n + k);
            Wide keep = 1 - (Wide){0}, add = {0};
            for (int64_t h = 0; h < writes; h++) {
                const Wide w = GET(now.written + h * n + k);
                keep *= 1 - w * x.erase[h * words + j], add += w * x.vectors[h * words + j];
            }
            const Wide m = old * keep + add;
            PUT(now.memory + j * n + k) = m;
            PUT(now.norms + k) = GET(now.norms + k) + m * m;
        }
    for (int64_t k = 0; k < n; k++) now.norms[k] = 1 / (REAL)sqrt(now.norms[k]);

    /* links and precedence */
    for (int64_t h = 0; h < writes; h++) {
        const REAL *w = now.written + h * n, *p = was.precedence + h * n;
        const Links links = {
            starts_at(tape, at) ? tape->zeros : linkage + h * size, linkage + h * size, n, tape->rows, w, p, was.read,
            to + h * reads * n, from + h * reads * n,
        };
        follow(&links, reads);
        REAL left = 1;
        for (int64_t k = 0; k < n; k++) left -= w[k];
        for (int64_t k = 0; k < n; k++) now.precedence[h * n + k] = left * p[k] + w[k];
    }

    /* read */
    for (int64_t i = 0; i < reads; i++) {
        const REAL *mode = x.modes + i * modes;
        REAL *restrict c = tape->read_content + (at * reads + i) * n, *restrict w = now.read + i * n;
        REAL *out = tape->after + at * (reads * words + tape->layers * tape->hidden) + i * words;
        content(now.memory, now.norms, x.keys + i * words, x.strengths[i] + tape->oneplus, words, slots, n, c);
        for (int64_t k = 0; k < n; k++) w[k] = mode[content_at(tape)] * c[k];
        for (int64_t h = 0; h < writes; h++) {
            const REAL ahead = mode[ahead_at(tape, h)], behind = mode[behind_at(h)];
            const REAL *restrict f = to + (h * reads + i) * n, *restrict g = from + (h * reads + i) * n;
            for (int64_t k = 0; k < n; k++) w[k] += ahead * f[k] + behind * g[k];
        }
        for (int64_t j = 0; j < words; j++) out[j] = dot(now.memory + j * n, w, n);
    }
}

static REAL within(REAL x, REAL limit) { return x > limit ? limit : x < -limit ? -limit : x; }

/* Steps first ... last - 1 of the batch entries begin ... end - 1. `gates` contains the input's part of the
   pre-activations, with biases; `scratch`: of `Loops._scratch_size` numbers, see fast_native.py. */
void NAME(forward)(const Tape *tape, int64_t first, int64_t last, int64_t begin, int64_t end, REAL *scratch) {
    const int64_t count = end - begin, d_h = tape->hidden, layers = tape->layers, width = tape->width;
    const int64_t read = tape->reads * tape->word, features = read + layers * d_h, wide = layers * 4 * d_h;
    const int64_t size = tape->writes * tape->rows * tape->lead;
    const REAL limit = (REAL)tape->clip;
    const unsigned flags = flush_denormals();
    for (int64_t t = first; t < last; t++) {
        const int64_t at = t * tape->batch + begin, next = at + tape->batch;
        REAL *before = tape->before + at * features, *after = tape->after + at * features, *vectors = tape->vectors + at * width;
        if (tape->keep && t % tape->checkpoint_interval == 0)
            memcpy(
                tape->checkpoints + (t / tape->checkpoint_interval * tape->batch + begin) * size, tape->linkage + begin * size,
                sizeof(REAL) * count * size);

        /* controller */
        for (int64_t r = 0; r < count; r++) {
            if (t > 0) memcpy(before + r * features, after + (r - tape->batch) * features, sizeof(REAL) * features);
            if (starts_at(tape, at + r)) memset(before + r * features, 0, sizeof(REAL) * features);
        }
        for (int64_t l = 0; l < layers; l++) {
            REAL *gates = tape->gates + at * wide + l * 4 * d_h;
            product(before, features, count, tape->w_read[l], l ? read : read + d_h, 4 * d_h, gates, wide);
            if (l) product(before + read + l * d_h, features, count, tape->w_hidden[l], d_h, 4 * d_h, gates, wide);
            if (l) product(after + read + (l - 1) * d_h, features, count, tape->w_below[l], d_h, 4 * d_h, gates, wide);
            for (int64_t r = 0; r < count; r++) {
                REAL *restrict i = gates + r * wide, *restrict f = i + d_h, *restrict g = f + d_h, *restrict o = g + d_h;
                REAL *restrict h = after + r * features + read + l * d_h;
                REAL *restrict s = tape->tanh_cells + ((at + r) * layers + l) * d_h;
                REAL *restrict cell = tape->cells + ((next + r) * layers + l) * d_h;
                const REAL *restrict was = tape->cells + ((at + r) * layers + l) * d_h;
                if (starts_at(tape, at + r)) was = tape->zeros;
                sigmoid_inplace(i, 2 * d_h);
                tanh_inplace(g, d_h);
                sigmoid_inplace(o, d_h);
                for (int64_t k = 0; k < d_h; k++) s[k] = cell[k] = within(f[k] * was[k] + i[k] * g[k], limit);
                tanh_inplace(s, d_h);
                for (int64_t k = 0; k < d_h; k++) h[k] = within(o[k] * s[k], limit);
            }
        }

        /* interface, slots */
        for (int64_t r = 0; r < count; r++)
            if (tape->interface_bias)
                memcpy(vectors + r * width, tape->interface_bias, sizeof(REAL) * width);
            else
                memset(vectors + r * width, 0, sizeof(REAL) * width);
        product(after + read, features, count, tape->interface, layers * d_h, width, vectors, width);
        for (int64_t b = begin; b < end; b++) advance_slots(tape, t, b, scratch);
    }
    restore_flags(flags);
}

/* Backward pass of `advance_slots`: that of the state, of which d_out are the read vectors, becomes that of the state
   before; gives that of the interface vector. `linkage`: L_{t-1} of each write head. */
static void slots_back(const Tape *tape, int64_t t, int64_t b, const REAL *d_out, const REAL *linkage, REAL *scratch) {
    const int64_t n = tape->lead, reads = tape->reads, writes = tape->writes, words = tape->word;
    const int64_t at = t * tape->batch + b, modes = 2 * writes + 1, size = tape->rows * n, fresh = starts_at(tape, at);
    const Parts x = parts_of(tape, tape->vectors + at * tape->width);
    const Parts d = parts_of(tape, tape->d_vectors + at * tape->width);
    const Slots was = slots_before(tape, at), now = slots_at(tape, at + tape->batch);
    REAL *d_memory = tape->d_memory + b * words * n, *d_usage = tape->d_usage + b * n;
    REAL *d_precedence = tape->d_precedence + b * writes * n, *d_written = tape->d_written + b * writes * n;
    REAL *d_read = tape->d_read + b * reads * n;
    REAL *to = take_scratch(&scratch, reads * n), *from = take_scratch(&scratch, reads * n);
    REAL *d_q = take_scratch(&scratch, reads * n);
    REAL *ahead = take_scratch(&scratch, reads * n), *behind = take_scratch(&scratch, reads * n);
    REAL *spare = take_scratch(&scratch, n), *other = take_scratch(&scratch, n);
    REAL *head_usage = take_scratch(&scratch, writes * n), *a = take_scratch(&scratch, writes * n);
    REAL *d_before = take_scratch(&scratch, writes * n);
    REAL *d_w = take_scratch(&scratch, n), *d_c = take_scratch(&scratch, n), *d_seen = take_scratch(&scratch, n);

    /* r = M' w^r */
    for (int64_t i = 0; i < reads; i++)
        for (int64_t j = 0; j < words; j++) {
            const REAL d_r = d_out[i * words + j];
            const REAL *m = now.memory + j * n, *w = now.read + i * n;
            for (int64_t k = 0; k < n; k += WIDE) {
                PUT(d_read + i * n + k) = GET(d_read + i * n + k) + d_r * GET(m + k);
                PUT(d_memory + j * n + k) = GET(d_memory + j * n + k) + d_r * GET(w + k);
            }
        }

    /* links and precedence */
    memset(d_q, 0, sizeof(REAL) * reads * n);
    for (int64_t h = 0; h < writes; h++) {
        const REAL *w = now.written + h * n, *p = was.precedence + h * n;
        REAL *restrict d_p = d_precedence + h * n, *restrict d_ww = d_written + h * n;
        for (int64_t i = 0; i < reads; i++) {
            const REAL *mode = x.modes + i * modes, of_ahead = mode[ahead_at(tape, h)], of_behind = mode[behind_at(h)];
            for (int64_t k = 0; k < n; k++) ahead[i * n + k] = of_ahead * was.read[i * n + k];
            for (int64_t k = 0; k < n; k++) behind[i * n + k] = of_behind * d_read[i * n + k];
        }
        /* p_t = (1 - Σ w) p_{t-1} + w */
        const REAL by_sum = dot(d_p, p, n);
        REAL left = 1;
        for (int64_t k = 0; k < n; k++) left -= w[k];
        for (int64_t k = 0; k < n; k++) {
            d_ww[k] += d_p[k] - by_sum;
            d_p[k] *= left;
        }
        const Links links = {
            fresh ? tape->zeros : linkage + h * size, tape->d_linkage + (b * writes + h) * size, n, tape->rows, w, p,
            was.read, to, from, d_read, ahead, behind, d_w, d_p, spare,
        };
        follow_back(&links, reads);
        for (int64_t k = 0; k < n; k++) d_ww[k] += d_w[k];
        for (int64_t i = 0; i < reads; i++) {
            const REAL *mode = x.modes + i * modes, of_ahead = mode[ahead_at(tape, h)], of_behind = mode[behind_at(h)];
            const REAL *f = from + i * n, *g = to + i * n; /* L' x belongs to forward, L x to backward */
            d.modes[i * modes + ahead_at(tape, h)] = dot(f, was.read + i * n, n);
            d.modes[i * modes + behind_at(h)] = dot(g, was.read + i * n, n);
            for (int64_t k = 0; k < n; k++) d_q[i * n + k] += of_ahead * f[k] + of_behind * g[k];
        }
    }

    /* content, modes */
    for (int64_t i = 0; i < reads; i++) {
        const REAL *mode = x.modes + i * modes, *c = tape->read_content + (at * reads + i) * n;
        const REAL strength = x.strengths[i], of_content = mode[content_at(tape)];
        REAL *d_mode = d.modes + i * modes, mean = 0;
        d_mode[content_at(tape)] = dot(d_read + i * n, c, n);
        for (int64_t k = 0; k < n; k++) d_c[k] = of_content * d_read[i * n + k];
        const REAL d_strength = content_back(
            now.memory, now.norms, x.keys + i * words, strength + tape->oneplus, c, words, n, d_c, d_memory,
            d.keys + i * words, spare);
        d.strengths[i] = d_strength * softplus_derivative(strength);
        for (int64_t k = 0; k < modes; k++) mean += d_mode[k] * mode[k];
        for (int64_t k = 0; k < modes; k++) d_mode[k] = mode[k] * (d_mode[k] - mean);
    }

    /* M_t = M_{t-1} ∘ Π (E - w e') + Σ w v' */
    for (int64_t h = 0; h < writes; h++) {
        const REAL *w = now.written + h * n;
        for (int64_t j = 0; j < words; j++) {
            const REAL e = x.erase[h * words + j], v = x.vectors[h * words + j];
            Wide by_erase = {0}, by_vector = {0};
            for (int64_t k = 0; k < n; k += WIDE) {
                Wide old = GET(was.memory + j * n + k);
                const Wide d_m = GET(d_memory + j * n + k);
                for (int64_t g = 0; g < writes; g++)
                    if (g != h) old *= 1 - x.erase[g * words + j] * GET(now.written + g * n + k);
                by_vector += d_m * GET(w + k);
                by_erase += d_m * GET(w + k) * old;
                PUT(d_written + h * n + k) = GET(d_written + h * n + k) + d_m * (v - e * old);
            }
            d.vectors[h * words + j] = sum_of(by_vector);
            d.erase[h * words + j] = -sum_of(by_erase) * e * (1 - e);
        }
    }
    for (int64_t h = 0; h < writes; h++)
        for (int64_t j = 0; j < words; j++)
            for (int64_t k = 0; k < n; k += WIDE)
                PUT(d_memory + j * n + k) =
                    GET(d_memory + j * n + k) * (1 - x.erase[h * words + j] * GET(now.written + h * n + k));

    /* w^w = g^w (g^a a + (1 - g^a) c) */
    allocations(tape, x, now.usage, tape->order + at * writes * n, head_usage, a, NULL);
    memset(d_seen, 0, sizeof(REAL) * n);
    for (int64_t h = writes - 1; h >= 0; h--) {
        const REAL *c = tape->write_content + (at * writes + h) * n, *use = a + h * n, *u = head_usage + h * n;
        const REAL by_use = x.allocate[h], gate = x.write[h], strength = x.write_strengths[h], both = by_use * gate;
        const REAL *restrict d_ww = d_written + h * n;
        REAL d_gate = 0, d_use = 0, d_both = 0;
        for (int64_t k = 0; k < n; k++) {
            d_gate += d_ww[k] * (c[k] + by_use * (use[k] - c[k]));
            d_use += d_ww[k] * gate * (use[k] - c[k]);
            d_both += d_seen[k] * (1 - u[k]) * use[k]; /* the next head sees u + (1 - u) g^a g^w a */
            d_w[k] = d_ww[k] * both + d_seen[k] * (1 - u[k]) * both;
            d_c[k] = d_ww[k] * gate * (1 - by_use);
            d_seen[k] *= 1 - both * use[k];
        }
        allocation_back(u, tape->order + (at * writes + h) * n, tape->slots, d_w, d_seen, spare);
        d.allocate[h] = (d_use + d_both * gate) * by_use * (1 - by_use);
        d.write[h] = (d_gate + d_both * by_use) * gate * (1 - gate);
        const REAL d_strength = content_back(
            was.memory, was.norms, x.write_keys + h * words, strength + tape->oneplus, c, words, n, d_c, d_memory,
            d.write_keys + h * words, spare);
        d.write_strengths[h] = d_strength * softplus_derivative(strength);
    }

    /* u_t = (u + (1 - Π (1 - w^w)) - ...) ∘ Π (1 - f w^r) = (1 - (1 - u) Π (1 - w^w)) ∘ ψ */
    kept_by(was.written, NULL, writes, -1, n, other);
    kept_by(was.read, x.free, reads, -1, n, spare);
    for (int64_t k = 0; k < n; k++) {
        const REAL d_u = d_usage[k] + d_seen[k], written = 1 - other[k];
        d_w[k] = d_u * (was.usage[k] + written - was.usage[k] * written); /* to ψ */
        d_c[k] = d_u * spare[k] * (1 - was.usage[k]);                     /* to what is written */
        d_usage[k] = d_u * spare[k] * other[k];
    }
    for (int64_t h = 0; h < writes; h++) {
        kept_by(was.written, NULL, writes, h, n, other);
        for (int64_t k = 0; k < n; k++) d_before[h * n + k] = tape->stop_usage_gradient ? 0 : d_c[k] * other[k];
    }
    for (int64_t i = 0; i < reads; i++) {
        const REAL *q = was.read + i * n, free = x.free[i];
        kept_by(was.read, x.free, reads, i, n, other);
        REAL sum = 0;
        for (int64_t k = 0; k < n; k++) {
            sum += d_w[k] * other[k] * q[k];
            d_read[i * n + k] = d_q[i * n + k] - d_w[k] * other[k] * free;
        }
        d.free[i] = -sum * free * (1 - free);
    }
    memcpy(d_written, d_before, sizeof(REAL) * writes * n);
    if (!fresh) return;
    memset(d_memory, 0, sizeof(REAL) * words * n);
    memset(d_usage, 0, sizeof(REAL) * n);
    memset(d_precedence, 0, sizeof(REAL) * writes * n);
    memset(d_written, 0, sizeof(REAL) * writes * n);
    memset(d_read, 0, sizeof(REAL) * reads * n);
    memset(tape->d_linkage + b * writes * size, 0, sizeof(REAL) * writes * size);
}

/* Backward pass over the steps first ... last - 1, from a stored linkage before `first`, for the batch entries begin
   ... end - 1. The gradients of the state after `last` are overwritten by those of the state before `first`; the
   gradients in d_after are not included. `linkages`: a buffer for all of these steps and environments except one step.
   */
void NAME(backward)(
    const Tape *tape, int64_t first, int64_t last, int64_t begin, int64_t end, REAL *scratch, REAL *linkages) {
    const int64_t count = end - begin, d_h = tape->hidden, layers = tape->layers, width = tape->width, n = tape->lead;
    const int64_t read = tape->reads * tape->word, features = read + layers * d_h, wide = layers * 4 * d_h;
    const int64_t one = tape->rows * n, size = tape->writes * one;
    const REAL limit = (REAL)tape->clip, steepest = (REAL)tape->clip_gradients;
    const unsigned flags = flush_denormals();
    const REAL *checkpoints = tape->checkpoints + (first / tape->checkpoint_interval * tape->batch + begin) * size;

    /* the linkages after all steps but the last, from the copy on: [B, steps, H, rows, lead] */
    const int64_t made = last - first - 1;
    for (int64_t b = begin; b < end; b++)
        for (int64_t h = 0; h < tape->writes; h++)
            for (int64_t i = 0; i < tape->rows; i += ROWS) { /* in the order in which they stay in the cache */
                const REAL *before = checkpoints + (b - begin) * size + h * one;
                for (int64_t t = first; t + 1 < last; t++) {
                    const int64_t at = t * tape->batch + b;
                    REAL *after = linkages + ((b - begin) * made + t - first) * size + h * one;
                    advance(
                        starts_at(tape, at) ? tape->zeros : before, after,
                        slots_at(tape, at + tape->batch).written + h * n, slots_before(tape, at).precedence + h * n, i, n);
                    before = after;
                }
            }

    for (int64_t t = last - 1; t >= first; t--) {
        const int64_t at = t * tape->batch + begin, next = at + tape->batch;
        REAL *d_carried = tape->d_carried + begin * features, *d_vectors = tape->d_vectors + at * width;
        for (int64_t k = 0; k < count * features; k++) d_carried[k] += tape->d_after[at * features + k];
        for (int64_t r = 0; r < count; r++) {
            const REAL *linkage =
                t == first ? checkpoints + r * size : linkages + (r * made + t - 1 - first) * size;
            slots_back(tape, t, begin + r, d_carried + r * features, linkage, scratch);
            memset(d_carried + r * features, 0, sizeof(REAL) * read);
        }
        product(d_vectors, width, count, tape->interface, width, layers * d_h, d_carried + read, features);

        /* controller */
        for (int64_t l = layers - 1; l >= 0; l--) {
            REAL *d_gates = tape->d_gates + at * wide + l * 4 * d_h;
            for (int64_t r = 0; r < count; r++) {
                const int64_t of = ((at + r) * layers + l) * d_h;
                const REAL *restrict i = tape->gates + (at + r) * wide + l * 4 * d_h, *restrict f = i + d_h;
                const REAL *restrict g = f + d_h, *restrict o = g + d_h, *restrict s = tape->tanh_cells + of;
                const REAL *restrict was = starts_at(tape, at + r) ? tape->zeros : tape->cells + of;
                const REAL *restrict cell = tape->cells + ((next + r) * layers + l) * d_h;
                REAL *restrict di = d_gates + r * wide, *restrict df = di + d_h, *restrict dg = df + d_h;
                REAL *restrict d_o = dg + d_h, *restrict dc = tape->d_cell + ((begin + r) * layers + l) * d_h;
                REAL *restrict dh = d_carried + r * features + read + l * d_h;
                for (int64_t k = 0; k < d_h; k++) {
                    const REAL h = o[k] * s[k];
                    REAL d = within(dh[k], steepest);
                    d = h > limit || h < -limit ? 0 : d;
                    REAL total = dc[k] + d * o[k] * (1 - s[k] * s[k]);
                    total = cell[k] >= limit || cell[k] <= -limit ? 0 : total;
                    di[k] = total * g[k] * i[k] * (1 - i[k]);
                    df[k] = total * was[k] * f[k] * (1 - f[k]);
                    dg[k] = total * i[k] * (1 - g[k] * g[k]);
                    d_o[k] = d * s[k] * o[k] * (1 - o[k]);
                    dc[k] = total * f[k];
                    dh[k] = 0;
                }
            }
            if (l) product(d_gates, wide, count, tape->w_below[l], 4 * d_h, d_h, d_carried + read + (l - 1) * d_h, features);
            if (l) product(d_gates, wide, count, tape->w_hidden[l], 4 * d_h, d_h, d_carried + read + l * d_h, features);
            product(d_gates, wide, count, tape->w_read[l], 4 * d_h, l ? read : read + d_h, d_carried, features);
        }
        for (int64_t r = 0; r < count; r++) {
            if (!starts_at(tape, at + r)) continue;
            memset(d_carried + r * features, 0, sizeof(REAL) * features);
            memset(tape->d_cell + (begin + r) * layers * d_h, 0, sizeof(REAL) * layers * d_h);
        }
    }
    restore_flags(flags);
}
