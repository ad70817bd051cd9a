/* The stack RNN over time, forward and backward; see fast_native.py. Equations and symbols as in memory.py.

   A call processes a block of environments over several steps, so that their stacks and the weights stay in the cache.
   Compiled twice, for REAL float and double. */

#include "activations.h"
#include "packed.h"

#define EMPTY ((REAL) - 1)

typedef struct {
    int64_t batch, hidden, stacks, capacity, top, actions, recurrent; /* actions: 2, or 3 with NO-OP */
    const uint8_t *starts;                                            /* [T, B] or NULL */
    const REAL *weight, *interface,
        *bias; /* [P R] and [A; D], packed for the forward or backward pass; bias of [A; D] */
    REAL *inputs, *after, *parameters,
        *cells;                          /* [T, B, in], [T, B, m], [T, B, interface], [T + 1, B, stacks, capacity] */
    const REAL *first_hidden, *empty;    /* [B, m]; [stacks, capacity] */
    const REAL *d_after;                 /* this and all below: backward only */
    REAL *d_sums, *d_parameters;         /* [steps of a call, B, ...] */
    REAL *d_hidden, *d_cells, *d_inputs; /* of the state, [B, ...]; d_inputs: scratch [B, in] */
} Tape;

static int64_t recurrent_size(const Tape *tape) { return tape->recurrent ? tape->hidden : 0; }
static int64_t tops_of(const Tape *tape) { return tape->stacks * tape->top; }
static int64_t interface_of(const Tape *tape) { return tape->stacks * (tape->actions + 1); }
static int starts_at(const Tape *tape, int64_t at) { return tape->starts && tape->starts[at]; }

static const REAL *cells_before(const Tape *tape, int64_t at) {
    return starts_at(tape, at) ? tape->empty : tape->cells + at * tape->stacks * tape->capacity;
}

/* [top; stack; EMPTY]: elements 0 ... capacity - 1 are the stack after a push, elements 2 ... after a pop. */
static void extend(const REAL *stack, REAL top, int64_t capacity, REAL *extended) {
    extended[0] = top, extended[capacity + 1] = EMPTY;
    memcpy(extended + 1, stack, sizeof(REAL) * capacity);
}

static void update_stacks(const Tape *tape, int64_t at) {
    const int64_t capacity = tape->capacity, actions = tape->actions, stacks_size = tape->stacks * capacity;
    const REAL *stack = cells_before(tape, at);
    REAL *action = tape->parameters + at * interface_of(tape), *top = action + tape->stacks * actions;
    REAL extended[capacity + 2], logits[3], *restrict new_stack = tape->cells + (at + tape->batch) * stacks_size;
    sigmoid_inplace(top, tape->stacks);
    for (int64_t s = 0; s < tape->stacks; s++, action += actions, stack += capacity, new_stack += capacity) {
        memcpy(logits, action, sizeof(REAL) * actions);
        softmax(action, logits, 1, actions, actions);
        const REAL push = action[0], pop = action[1], no_op = actions > 2 ? action[2] : 0;
        extend(stack, top[s], capacity, extended);
        for (int64_t i = 0; i < capacity; i++)
            new_stack[i] = push * extended[i] + no_op * extended[i + 1] + pop * extended[i + 2];
    }
}

/* Steps first ... last - 1 of the batch entries begin ... end - 1; `after` contains U x. */
void NAME(forward)(const Tape *tape, int64_t first, int64_t last, int64_t begin, int64_t end) {
    const int64_t rows = end - begin, size = tape->hidden, tops = tops_of(tape),
                  inputs_size = tops + recurrent_size(tape), top = tape->top;
    const int64_t interface = interface_of(tape);
    for (int64_t t = first; t < last; t++) {
        const int64_t at = t * tape->batch + begin;
        REAL *hidden = tape->after + at * size, *parameters = tape->parameters + at * interface;
        for (int64_t r = 0; r < rows; r++) {
            const REAL *stack = cells_before(tape, at + r);
            const REAL *before = t ? hidden + (r - tape->batch) * size : tape->first_hidden + (begin + r) * size;
            REAL *row = tape->inputs + (at + r) * inputs_size;
            for (int64_t s = 0; s < tape->stacks; s++)
                memcpy(row + s * top, stack + s * tape->capacity, sizeof(REAL) * top);
            if (starts_at(tape, at + r))
                memset(row + tops, 0, sizeof(REAL) * recurrent_size(tape));
            else
                memcpy(row + tops, before, sizeof(REAL) * recurrent_size(tape));
            memcpy(parameters + r * interface, tape->bias, sizeof(REAL) * interface);
        }
        product(tape->inputs + at * inputs_size, inputs_size, rows, tape->weight, inputs_size, size, hidden, size);
        sigmoid_inplace(hidden, rows * size);
        product(hidden, size, rows, tape->interface, size, interface, parameters, interface);
        for (int64_t r = 0; r < rows; r++) update_stacks(tape, at + r);
    }
}

/* Backward pass of `update_stacks`: d_cells of the new cells is overwritten by that of the old ones; d_action: gradients
   of the logits of a and of D h. */
static void update_stacks_backward(const Tape *tape, int64_t at, REAL *restrict d_cells, REAL *d_action) {
    const int64_t capacity = tape->capacity, actions = tape->actions;
    const REAL *stack = cells_before(tape, at), *action = tape->parameters + at * interface_of(tape);
    const REAL *top = action + tape->stacks * actions;
    REAL extended[capacity + 2], d_new_stack[capacity + 2], *d_top = d_action + tape->stacks * actions;
    d_new_stack[0] = d_new_stack[capacity + 1] = 0;
    for (int64_t s = 0; s < tape->stacks;
         s++, action += actions, d_action += actions, stack += capacity, d_cells += capacity) {
        const REAL push = action[0], pop = action[1], no_op = actions > 2 ? action[2] : 0;
        const REAL *restrict d = d_new_stack + 1;
        REAL d_push = 0, d_pop = 0, d_no_op = 0;
        extend(stack, top[s], capacity, extended);
        memcpy(d_new_stack + 1, d_cells, sizeof(REAL) * capacity);
        for (int64_t i = 0; i < capacity; i++) {
            d_push += d[i] * extended[i];
            d_no_op += d[i] * extended[i + 1];
            d_pop += d[i] * extended[i + 2];
        }
        for (int64_t i = 0; i < capacity; i++)
            d_cells[i] = push * d_new_stack[i + 2] + no_op * d_new_stack[i + 1] + pop * d_new_stack[i];
        const REAL inner_product = push * d_push + pop * d_pop + no_op * d_no_op;
        d_action[0] = push * (d_push - inner_product), d_action[1] = pop * (d_pop - inner_product);
        if (actions > 2) d_action[2] = no_op * (d_no_op - inner_product);
        d_top[s] = push * d[0] * top[s] * (1 - top[s]);
    }
}

/* Backward pass over the steps first ... last - 1 for the batch entries begin ... end - 1, from the last step to the
   first. The gradients of the state after `last` are overwritten by those of the state before `first`. Gradient
   arrays of steps begin with step `first`. */
void NAME(backward)(const Tape *tape, int64_t first, int64_t last, int64_t begin, int64_t end) {
    const int64_t rows = end - begin, size = tape->hidden, tops = tops_of(tape),
                  inputs_size = tops + recurrent_size(tape), top = tape->top;
    const int64_t interface = interface_of(tape), stacks_size = tape->stacks * tape->capacity;
    for (int64_t t = last - 1; t >= first; t--) {
        const int64_t at = t * tape->batch + begin, grad_at = at - first * tape->batch;
        REAL *d_parameters = tape->d_parameters + grad_at * interface, *d_sums = tape->d_sums + grad_at * size;
        REAL *d_hidden = tape->d_hidden + begin * size, *d_inputs = tape->d_inputs + begin * inputs_size;
        const REAL *restrict hidden = tape->after + at * size;
        for (int64_t r = 0; r < rows; r++)
            update_stacks_backward(
                tape, at + r, tape->d_cells + (begin + r) * stacks_size, d_parameters + r * interface);
        for (int64_t k = 0; k < rows * size; k++) d_sums[k] = d_hidden[k] + tape->d_after[at * size + k];
        product(d_parameters, interface, rows, tape->interface, interface, size, d_sums, size);
        for (int64_t k = 0; k < rows * size; k++) d_sums[k] *= hidden[k] * (1 - hidden[k]);
        memset(d_inputs, 0, sizeof(REAL) * rows * inputs_size);
        product(d_sums, size, rows, tape->weight, size, inputs_size, d_inputs, inputs_size);
        memset(d_hidden, 0, sizeof(REAL) * rows * size);
        for (int64_t r = 0; r < rows; r++) {
            REAL *d_cells = tape->d_cells + (begin + r) * stacks_size;
            if (starts_at(tape, at + r)) {
                memset(d_cells, 0, sizeof(REAL) * stacks_size);
                continue;
            }
            memcpy(d_hidden + r * size, d_inputs + r * inputs_size + tops, sizeof(REAL) * recurrent_size(tape));
            for (int64_t s = 0; s < tape->stacks; s++)
                for (int64_t i = 0; i < top; i++)
                    d_cells[s * tape->capacity + i] += d_inputs[r * inputs_size + s * top + i];
        }
    }
}
