/* MNM-g's write and read, and their backward pass: the gradient step, eq. (2) and (3), instead of the local rule.
   Included by fast_sequence.c, with its names and array layouts; e is δ^l, half the gradient of the squared error with
   respect to M^l z^{l-1}. */

/* The value that head i writes. */
static const REAL *value_of(const Tape *tape, int64_t at, int64_t i) {
    return tape->interactions + at * tape->interaction_size + 2 * tape->heads * tape->sizes[0] +
           i * value_size_of(tape);
}

/* Eq. (2) and (3): forward through the old memory (z), errors backward (e), the write, forward through the new memory
   (y). */
static void gradient_and_read(const Tape *tape, int64_t b, int64_t at, const REAL *steps) {
    const int64_t heads = tape->heads, padded_d_k = PADDED(tape->sizes[0]), top = tape->layers - 1;
    REAL keys[2 * heads * padded_d_k];
    load_keys(tape, at, keys);
    const REAL *y_below = keys, *z_below = keys + heads * padded_d_k;
    for (int64_t l = 0; l <= top; l++) {
        const int64_t size = tape->sizes[l + 1], n = PADDED(tape->sizes[l]), m = PADDED(size);
        const REAL *matrix = tape->m[l] + b * UP(size, LANES) * n;
        REAL *z = tape->z[l] + at * heads * m;
        memset(z, 0, sizeof(REAL) * heads * m);
        for (int64_t j = 0; j < size; j += LANES) dots(z_below, heads, matrix + j * n, n, z + j, m);
        if (l < top || tape->tanh_output) tanh_inplace(z, heads * m);
        z_below = z;
    }
    for (int64_t l = top; l >= 0; l--) {
        const int64_t m = PADDED(tape->sizes[l + 1]);
        const REAL *z = tape->z[l] + at * heads * m;
        REAL *e = tape->e[l] + at * heads * m;
        memset(e, 0, sizeof(REAL) * heads * m);
        if (l == top)
            for (int64_t i = 0; i < heads; i++)
                for (int64_t j = 0; j < tape->sizes[l + 1]; j++) e[i * m + j] = z[i * m + j] - value_of(tape, at, i)[j];
        else {
            const int64_t size_above = tape->sizes[l + 2], m_above = PADDED(size_above);
            const REAL *matrix = tape->m[l + 1] + b * UP(size_above, LANES) * m,
                       *e_above = tape->e[l + 1] + at * heads * m_above;
            for (int64_t j = 0; j < size_above; j += LANES)
                add_weighted_rows(e, e_above + j, m_above, matrix + j * m, heads, m);
        }
        if (l < top || tape->tanh_output)
            for (int64_t k = 0; k < heads * m; k++) e[k] *= 1 - z[k] * z[k];
    }
    z_below = keys + heads * padded_d_k;
    for (int64_t l = 0; l <= top; l++) {
        const int64_t size = tape->sizes[l + 1], n = PADDED(tape->sizes[l]), m = PADDED(size);
        const REAL *e = tape->e[l] + at * heads * m;
        REAL *matrix = tape->m[l] + b * UP(size, LANES) * n, *y = tape->y[l] + at * 2 * heads * m, write[heads * m];
        for (int64_t k = 0; k < heads * m; k++) write[k] = -steps[l] * e[k];
        memset(y, 0, sizeof(REAL) * 2 * heads * m);
        for (int64_t j = 0; j < size; j += LANES) {
            add_outer_products(matrix + j * n, write + j, m, z_below, heads, n);
            dots(y_below, 2 * heads, matrix + j * n, n, y + j, m);
        }
        if (l < top || tape->tanh_output) tanh_inplace(y, 2 * heads * m);
        y_below = y, z_below = tape->z[l] + at * heads * m;
    }
}

/* As `write_and_read_backward`; adds to d_values [H, d_v]. */
static void gradient_and_read_backward(
    const Tape *tape, int64_t b, int64_t at, const REAL *steps, REAL *d_y, REAL *d_values, REAL *d_keys,
    REAL *d_steps) {
    const int64_t heads = tape->heads, d_k = tape->sizes[0], padded_d_k = PADDED(d_k), top = tape->layers - 1;
    const int64_t max_width = max_width_of(tape);
    int64_t offset[MAX_LAYERS + 1] = {0}; /* where a layer's input begins in d_z, and its output in d_e */
    for (int64_t l = 0; l <= top; l++) offset[l + 1] = offset[l] + heads * PADDED(tape->sizes[l]);
    const int64_t total_size = offset[top + 1] + heads * PADDED(tape->sizes[top + 1]);
    REAL keys[2 * heads * padded_d_k], d_y_below[2 * heads * max_width], d_z[total_size], d_e[total_size];
    REAL write[heads * max_width], undo_write[heads * max_width], propagated[heads * max_width],
        d_propagated[heads * max_width];
    load_keys(tape, at, keys);
    memset(d_z, 0, sizeof d_z);
    memset(d_e, 0, sizeof d_e);

    /* gradients of the read and of the write; the write is undone */
    for (int64_t l = top; l >= 0; l--) {
        const int64_t size = tape->sizes[l + 1], n = PADDED(tape->sizes[l]), m = PADDED(size);
        REAL *matrix = tape->m[l] + b * UP(size, LANES) * n, *d_m = tape->d_m[l] + b * UP(size, LANES) * n;
        const REAL *e = tape->e[l] + at * heads * m, *y = tape->y[l] + at * 2 * heads * m;
        const REAL *y_below = l ? tape->y[l - 1] + at * 2 * heads * n : keys;
        const REAL *z_below = l ? tape->z[l - 1] + at * heads * n : keys + heads * n;
        REAL *d_out = d_e + offset[l + 1], d_step = 0;
        if (l < top || tape->tanh_output)
            for (int64_t k = 0; k < 2 * heads * m; k++) d_y[k] *= 1 - y[k] * y[k];
        for (int64_t k = 0; k < heads * m; k++) undo_write[k] = steps[l] * e[k], write[k] = -undo_write[k];
        memset(d_y_below, 0, sizeof(REAL) * 2 * heads * n);
        for (int64_t j = 0; j < size; j += LANES) {
            REAL *rows = matrix + j * n, *d_rows = d_m + j * n;
            add_outer_products(d_rows, d_y + j, m, y_below, 2 * heads, n);
            dots(z_below, heads, d_rows, n, d_out + j, m);
            add_weighted_rows(d_y_below, d_y + j, m, rows, 2 * heads, n);
            add_weighted_rows(d_z + offset[l], write + j, m, d_rows, heads, n);
            add_outer_products(rows, undo_write + j, m, z_below, heads, n);
        }
        for (int64_t k = 0; k < heads * m; k++) d_step -= d_out[k] * e[k], d_out[k] *= -steps[l];
        d_steps[l] = d_step;
        memcpy(d_y, d_y_below, sizeof(REAL) * 2 * heads * n);
    }

    /* gradients of the errors δ^{l-1} = (δ^l M^l) ∘ (1 - z²) */
    for (int64_t l = 1; l <= top; l++) {
        const int64_t size = tape->sizes[l + 1], n = PADDED(tape->sizes[l]), m = PADDED(size);
        const REAL *matrix = tape->m[l] + b * UP(size, LANES) * n;
        const REAL *e = tape->e[l] + at * heads * m, *z_below = tape->z[l - 1] + at * heads * n;
        REAL *d_m = tape->d_m[l] + b * UP(size, LANES) * n, *d_below = d_e + offset[l], *d_e_out = write;
        for (int64_t k = 0; k < heads * n; k++) d_propagated[k] = d_below[k] * (1 - z_below[k] * z_below[k]);
        memset(propagated, 0, sizeof(REAL) * heads * n);
        memset(d_e_out, 0, sizeof(REAL) * heads * m);
        for (int64_t j = 0; j < size; j += LANES) {
            add_weighted_rows(propagated, e + j, m, matrix + j * n, heads, n);
            dots(d_propagated, heads, matrix + j * n, n, d_e_out + j, m);
            add_outer_products(d_m + j * n, e + j, m, d_propagated, heads, n);
        }
        for (int64_t k = 0; k < heads * n; k++) d_z[offset[l] + k] -= 2 * z_below[k] * d_below[k] * propagated[k];
        for (int64_t k = 0; k < heads * m; k++) d_e[offset[l + 1] + k] += d_e_out[k];
    }
    const int64_t d_v = value_size_of(tape), padded_value = PADDED(d_v);
    const REAL *z = tape->z[top] + at * heads * padded_value;
    for (int64_t i = 0; i < heads; i++)
        for (int64_t k = 0; k < d_v; k++) {
            const REAL z_out = z[i * padded_value + k], d_out = d_e[offset[top + 1] + i * padded_value + k];
            const REAL d_error = tape->tanh_output ? d_out * (1 - z_out * z_out) : d_out;
            d_values[i * d_v + k] -= d_error;
            d_z[offset[top + 1] + i * padded_value + k] =
                tape->tanh_output ? d_error - 2 * z_out * d_out * (z_out - value_of(tape, at, i)[k]) : d_error;
        }

    /* gradients of z, down through the old memory */
    for (int64_t l = top; l >= 0; l--) {
        const int64_t size = tape->sizes[l + 1], n = PADDED(tape->sizes[l]), m = PADDED(size);
        const REAL *matrix = tape->m[l] + b * UP(size, LANES) * n, *z_out = tape->z[l] + at * heads * m;
        const REAL *z_below = l ? tape->z[l - 1] + at * heads * n : keys + heads * n;
        REAL *d_m = tape->d_m[l] + b * UP(size, LANES) * n, *d_out = d_z + offset[l + 1];
        if (l < top || tape->tanh_output)
            for (int64_t k = 0; k < heads * m; k++) d_out[k] *= 1 - z_out[k] * z_out[k];
        for (int64_t j = 0; j < size; j += LANES) {
            add_outer_products(d_m + j * n, d_out + j, m, z_below, heads, n);
            add_weighted_rows(d_z + offset[l], d_out + j, m, matrix + j * n, heads, n);
        }
    }
    for (int64_t i = 0; i < 2 * heads; i++) {
        memcpy(d_keys + i * d_k, d_y + i * padded_d_k, sizeof(REAL) * d_k);
        for (int64_t k = 0; i >= heads && k < d_k; k++) d_keys[i * d_k + k] += d_z[(i - heads) * padded_d_k + k];
    }
}
