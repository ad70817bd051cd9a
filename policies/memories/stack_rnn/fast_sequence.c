/* The stack RNN over time, forward and backward; see fast_native.py. Equations and symbols as in memory.py.

   A call processes a block of environments over several steps, so that their stacks and the weights stay in the cache.
   Compiled twice, for REAL float and double. */

#include "activations.h"
#include "packed.h"

#define EMPTY ((REAL)-1)

typedef struct {
    int64_t batch, hidden, stacks, capacity, top, moves, recurrent; /* moves: PUSH, POP and, where allowed, NO-OP */
    const uint8_t *starts;                      /* [T, B] or NULL: where an episode starts with a step */
    const REAL *weight, *interface, *bias;      /* [P R] and [A; D], packed, each for its direction; the bias of the latter */
    REAL *inputs, *after, *parameters, *cells;  /* [T, B, in], [T, B, m], [T, B, interface], [T + 1, B, stacks, capacity] */
    const REAL *first_hidden, *empty;           /* [B, m]; [stacks, capacity] */
    const REAL *d_after;                        /* backward only, as all that follow */
    REAL *d_sums, *d_parameters;                /* of some steps */
    REAL *d_hidden, *d_cells, *d_inputs;        /* of the state, [B, ...], and scratch [B, in] */
} Tape;

static int64_t own(const Tape *tape) { return tape->recurrent ? tape->hidden : 0; }
static int64_t tops_of(const Tape *tape) { return tape->stacks * tape->top; }
static int64_t interface_of(const Tape *tape) { return tape->stacks * (tape->moves + 1); }
static int starts_at(const Tape *tape, int64_t at) { return tape->starts && tape->starts[at]; }

static const REAL *cells_before(const Tape *tape, int64_t at) {
    return starts_at(tape, at) ? tape->empty : tape->cells + at * tape->stacks * tape->capacity;
}

/* One array contains both results: read from its first cell it is the stack after a push, from its third after a pop.
   */
static void surround(const REAL *stack, REAL top, int64_t capacity, REAL *around) {
    around[0] = top, around[capacity + 1] = EMPTY;
    memcpy(around + 1, stack, sizeof(REAL) * capacity);
}

static void move(const Tape *tape, int64_t at) {
    const int64_t capacity = tape->capacity, moves = tape->moves, all = tape->stacks * capacity;
    const REAL *stack = cells_before(tape, at);
    REAL *action = tape->parameters + at * interface_of(tape), *top = action + tape->stacks * moves;
    REAL around[capacity + 2], given[3], *restrict following = tape->cells + (at + tape->batch) * all;
    sigmoid_inplace(top, tape->stacks);
    for (int64_t s = 0; s < tape->stacks; s++, action += moves, stack += capacity, following += capacity) {
        memcpy(given, action, sizeof(REAL) * moves);
        softmax(action, given, 1, moves, moves);
        const REAL push = action[0], pop = action[1], stay = moves > 2 ? action[2] : 0;
        surround(stack, top[s], capacity, around);
        for (int64_t i = 0; i < capacity; i++)
            following[i] = push * around[i] + stay * around[i + 1] + pop * around[i + 2];
    }
}

/* Steps first ... last - 1 of the batch entries begin ... end - 1; `after` holds U x. */
void NAME(forward)(const Tape *tape, int64_t first, int64_t last, int64_t begin, int64_t end) {
    const int64_t rows = end - begin, size = tape->hidden, tops = tops_of(tape), in = tops + own(tape), top = tape->top;
    const int64_t interface = interface_of(tape);
    for (int64_t t = first; t < last; t++) {
        const int64_t at = t * tape->batch + begin;
        REAL *hidden = tape->after + at * size, *parameters = tape->parameters + at * interface;
        for (int64_t r = 0; r < rows; r++) {
            const REAL *stack = cells_before(tape, at + r);
            const REAL *before = t ? hidden + (r - tape->batch) * size : tape->first_hidden + (begin + r) * size;
            REAL *row = tape->inputs + (at + r) * in;
            for (int64_t s = 0; s < tape->stacks; s++)
                memcpy(row + s * top, stack + s * tape->capacity, sizeof(REAL) * top);
            if (starts_at(tape, at + r))
                memset(row + tops, 0, sizeof(REAL) * own(tape));
            else
                memcpy(row + tops, before, sizeof(REAL) * own(tape));
            memcpy(parameters + r * interface, tape->bias, sizeof(REAL) * interface);
        }
        product(tape->inputs + at * in, in, rows, tape->weight, in, size, hidden, size);
        sigmoid_inplace(hidden, rows * size);
        product(hidden, size, rows, tape->interface, size, interface, parameters, interface);
        for (int64_t r = 0; r < rows; r++) move(tape, at + r);
    }
}

/* Backward pass of `move`: d_cells becomes that of the cells before it, d_action that of the sums that entered a and σ.
   */
static void move_back(const Tape *tape, int64_t at, REAL *restrict d_cells, REAL *d_action) {
    const int64_t capacity = tape->capacity, moves = tape->moves;
    const REAL *stack = cells_before(tape, at), *action = tape->parameters + at * interface_of(tape);
    const REAL *top = action + tape->stacks * moves;
    REAL around[capacity + 2], d_following[capacity + 2], *d_top = d_action + tape->stacks * moves;
    d_following[0] = d_following[capacity + 1] = 0;
    for (int64_t s = 0; s < tape->stacks; s++, action += moves, d_action += moves, stack += capacity, d_cells += capacity) {
        const REAL push = action[0], pop = action[1], stay = moves > 2 ? action[2] : 0;
        const REAL *restrict d = d_following + 1;
        REAL d_push = 0, d_pop = 0, d_stay = 0;
        surround(stack, top[s], capacity, around);
        memcpy(d_following + 1, d_cells, sizeof(REAL) * capacity);
        for (int64_t i = 0; i < capacity; i++) {
            d_push += d[i] * around[i];
            d_stay += d[i] * around[i + 1];
            d_pop += d[i] * around[i + 2];
        }
        for (int64_t i = 0; i < capacity; i++)
            d_cells[i] = push * d_following[i + 2] + stay * d_following[i + 1] + pop * d_following[i];
        const REAL along = push * d_push + pop * d_pop + stay * d_stay;
        d_action[0] = push * (d_push - along), d_action[1] = pop * (d_pop - along);
        if (moves > 2) d_action[2] = stay * (d_stay - along);
        d_top[s] = push * d[0] * top[s] * (1 - top[s]);
    }
}

/* Backward pass over the steps first ... last - 1 for the batch entries begin ... end - 1, from the last step to the
   first. The gradients of the state after `last` are overwritten by those of the state before `first`. The arrays of
   the steps' own gradients begin at `first`. */
void NAME(backward)(const Tape *tape, int64_t first, int64_t last, int64_t begin, int64_t end) {
    const int64_t rows = end - begin, size = tape->hidden, tops = tops_of(tape), in = tops + own(tape), top = tape->top;
    const int64_t interface = interface_of(tape), all = tape->stacks * tape->capacity;
    for (int64_t t = last - 1; t >= first; t--) {
        const int64_t at = t * tape->batch + begin, here = at - first * tape->batch;
        REAL *d_parameters = tape->d_parameters + here * interface, *d_sums = tape->d_sums + here * size;
        REAL *d_hidden = tape->d_hidden + begin * size, *d_inputs = tape->d_inputs + begin * in;
        const REAL *restrict hidden = tape->after + at * size;
        for (int64_t r = 0; r < rows; r++)
            move_back(tape, at + r, tape->d_cells + (begin + r) * all, d_parameters + r * interface);
        for (int64_t k = 0; k < rows * size; k++) d_sums[k] = d_hidden[k] + tape->d_after[at * size + k];
        product(d_parameters, interface, rows, tape->interface, interface, size, d_sums, size);
        for (int64_t k = 0; k < rows * size; k++) d_sums[k] *= hidden[k] * (1 - hidden[k]);
        memset(d_inputs, 0, sizeof(REAL) * rows * in);
        product(d_sums, size, rows, tape->weight, size, in, d_inputs, in);
        memset(d_hidden, 0, sizeof(REAL) * rows * size);
        for (int64_t r = 0; r < rows; r++) {
            REAL *d_cells = tape->d_cells + (begin + r) * all;
            if (starts_at(tape, at + r)) {
                memset(d_cells, 0, sizeof(REAL) * all);
                continue;
            }
            memcpy(d_hidden + r * size, d_inputs + r * in + tops, sizeof(REAL) * own(tape));
            for (int64_t s = 0; s < tape->stacks; s++)
                for (int64_t i = 0; i < top; i++) d_cells[s * tape->capacity + i] += d_inputs[r * in + s * top + i];
        }
    }
}
