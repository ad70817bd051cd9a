/* MNM-g's write and read, and their backward pass: the gradient step, eq. (2) and (3), instead of the local rule.
   Included by fast_sequence.c, whose names and layout it shares; e is δ^l, half the gradient by M^l z^{l-1} of the
   squared error. */

/* The keys of a step, padded. */
static void keys_of(const Tape *tape, int64_t at, REAL *keys) {
    const int64_t key = tape->sizes[0], padded = PADDED(key);
    memset(keys, 0, sizeof(REAL) * 2 * tape->heads * padded);
    for (int64_t i = 0; i < 2 * tape->heads; i++)
        memcpy(keys + i * padded, tape->interactions + at * tape->width + i * key, sizeof(REAL) * key);
}

/* The value that head i writes. */
static const REAL *value_of(const Tape *tape, int64_t at, int64_t i) {
    return tape->interactions + at * tape->width + 2 * tape->heads * tape->sizes[0] + i * top_of(tape);
}

/* Forward through the old memory (z), errors backward (e), the write, forward through the new memory (y). */
static void gradient_and_read(const Tape *tape, int64_t b, int64_t at, const REAL *steps) {
    const int64_t heads = tape->heads, padded_key = PADDED(tape->sizes[0]), top = tape->layers - 1;
    REAL keys[2 * heads * padded_key];
    keys_of(tape, at, keys);
    const REAL *y_below = keys, *z_below = keys + heads * padded_key;
    for (int64_t l = 0; l <= top; l++) {
        const int64_t size = tape->sizes[l + 1], n = PADDED(tape->sizes[l]), m = PADDED(size);
        const REAL *matrix = tape->m[l] + b * UP(size, LANES) * n;
        REAL *z = tape->z[l] + at * heads * m;
        memset(z, 0, sizeof(REAL) * heads * m);
        for (int64_t j = 0; j < size; j += LANES) dots(z_below, heads, matrix + j * n, n, z + j, m);
        if (l < top || tape->squash_last) squash(z, heads * m);
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
            const int64_t above = tape->sizes[l + 2], wide = PADDED(above);
            const REAL *matrix = tape->m[l + 1] + b * UP(above, LANES) * m, *e_above = tape->e[l + 1] + at * heads * wide;
            for (int64_t j = 0; j < above; j += LANES) gather(e, e_above + j, wide, matrix + j * m, heads, m);
        }
        if (l < top || tape->squash_last)
            for (int64_t k = 0; k < heads * m; k++) e[k] *= 1 - z[k] * z[k];
    }
    z_below = keys + heads * padded_key;
    for (int64_t l = 0; l <= top; l++) {
        const int64_t size = tape->sizes[l + 1], n = PADDED(tape->sizes[l]), m = PADDED(size);
        const REAL *e = tape->e[l] + at * heads * m;
        REAL *matrix = tape->m[l] + b * UP(size, LANES) * n, *y = tape->y[l] + at * 2 * heads * m, write[heads * m];
        for (int64_t k = 0; k < heads * m; k++) write[k] = -steps[l] * e[k];
        memset(y, 0, sizeof(REAL) * 2 * heads * m);
        for (int64_t j = 0; j < size; j += LANES) {
            spread(matrix + j * n, write + j, m, z_below, heads, n);
            dots(y_below, 2 * heads, matrix + j * n, n, y + j, m);
        }
        if (l < top || tape->squash_last) squash(y, 2 * heads * m);
        y_below = y, z_below = tape->z[l] + at * heads * m;
    }
}

/* As `undo`; d_values [H, d_v] is added to. */
static void undo_gradient(
    const Tape *tape, int64_t b, int64_t at, const REAL *steps, REAL *d_y, REAL *d_values, REAL *d_keys, REAL *d_steps) {
    const int64_t heads = tape->heads, key = tape->sizes[0], padded_key = PADDED(key), top = tape->layers - 1;
    int64_t widest = padded_key, from[MAX_LAYERS + 1]; /* where a layer's input begins in d_z, and its output in d_e */
    from[0] = 0;
    for (int64_t l = 0; l <= top; l++) {
        const int64_t m = PADDED(tape->sizes[l + 1]);
        widest = m > widest ? m : widest;
        from[l + 1] = from[l] + heads * PADDED(tape->sizes[l]);
    }
    const int64_t all = from[top + 1] + heads * PADDED(tape->sizes[top + 1]);
    REAL keys[2 * heads * padded_key], lower_y[2 * heads * widest], d_z[all], d_e[all];
    REAL write[heads * widest], undone[heads * widest], pulled[heads * widest], d_pulled[heads * widest];
    keys_of(tape, at, keys);
    memset(d_z, 0, sizeof d_z);
    memset(d_e, 0, sizeof d_e);

    /* the read, and the write, which is undone */
    for (int64_t l = top; l >= 0; l--) {
        const int64_t size = tape->sizes[l + 1], n = PADDED(tape->sizes[l]), m = PADDED(size);
        REAL *matrix = tape->m[l] + b * UP(size, LANES) * n, *d_m = tape->d_m[l] + b * UP(size, LANES) * n;
        const REAL *e = tape->e[l] + at * heads * m, *y = tape->y[l] + at * 2 * heads * m;
        const REAL *y_below = l ? tape->y[l - 1] + at * 2 * heads * n : keys;
        const REAL *z_below = l ? tape->z[l - 1] + at * heads * n : keys + heads * n;
        REAL *d_own = d_e + from[l + 1], d_step = 0;
        if (l < top || tape->squash_last)
            for (int64_t k = 0; k < 2 * heads * m; k++) d_y[k] *= 1 - y[k] * y[k];
        for (int64_t k = 0; k < heads * m; k++) undone[k] = steps[l] * e[k], write[k] = -undone[k];
        memset(lower_y, 0, sizeof(REAL) * 2 * heads * n);
        for (int64_t j = 0; j < size; j += LANES) {
            REAL *rows = matrix + j * n, *d_rows = d_m + j * n;
            spread(d_rows, d_y + j, m, y_below, 2 * heads, n);
            dots(z_below, heads, d_rows, n, d_own + j, m);
            gather(lower_y, d_y + j, m, rows, 2 * heads, n);
            gather(d_z + from[l], write + j, m, d_rows, heads, n);
            spread(rows, undone + j, m, z_below, heads, n);
        }
        for (int64_t k = 0; k < heads * m; k++) d_step -= d_own[k] * e[k], d_own[k] *= -steps[l];
        d_steps[l] = d_step;
        memcpy(d_y, lower_y, sizeof(REAL) * 2 * heads * n);
    }

    /* errors: δ^{l-1} = (δ^l M^l) ∘ (1 - z²) */
    for (int64_t l = 1; l <= top; l++) {
        const int64_t size = tape->sizes[l + 1], n = PADDED(tape->sizes[l]), m = PADDED(size);
        const REAL *matrix = tape->m[l] + b * UP(size, LANES) * n;
        const REAL *e = tape->e[l] + at * heads * m, *z_below = tape->z[l - 1] + at * heads * n;
        REAL *d_m = tape->d_m[l] + b * UP(size, LANES) * n, *d_below = d_e + from[l], *added = write;
        for (int64_t k = 0; k < heads * n; k++) d_pulled[k] = d_below[k] * (1 - z_below[k] * z_below[k]);
        memset(pulled, 0, sizeof(REAL) * heads * n);
        memset(added, 0, sizeof(REAL) * heads * m);
        for (int64_t j = 0; j < size; j += LANES) {
            gather(pulled, e + j, m, matrix + j * n, heads, n);
            dots(d_pulled, heads, matrix + j * n, n, added + j, m);
            spread(d_m + j * n, e + j, m, d_pulled, heads, n);
        }
        for (int64_t k = 0; k < heads * n; k++) d_z[from[l] + k] -= 2 * z_below[k] * d_below[k] * pulled[k];
        for (int64_t k = 0; k < heads * m; k++) d_e[from[l + 1] + k] += added[k];
    }
    const int64_t d_v = top_of(tape), apart = PADDED(d_v);
    const REAL *z = tape->z[top] + at * heads * apart;
    for (int64_t i = 0; i < heads; i++)
        for (int64_t k = 0; k < d_v; k++) {
            const REAL own = z[i * apart + k], d_own = d_e[from[top + 1] + i * apart + k];
            const REAL d_error = tape->squash_last ? d_own * (1 - own * own) : d_own;
            d_values[i * d_v + k] -= d_error;
            d_z[from[top + 1] + i * apart + k] =
                tape->squash_last ? d_error - 2 * own * d_own * (own - value_of(tape, at, i)[k]) : d_error;
        }

    /* write keys, up through the old memory */
    for (int64_t l = top; l >= 0; l--) {
        const int64_t size = tape->sizes[l + 1], n = PADDED(tape->sizes[l]), m = PADDED(size);
        const REAL *matrix = tape->m[l] + b * UP(size, LANES) * n, *own = tape->z[l] + at * heads * m;
        const REAL *z_below = l ? tape->z[l - 1] + at * heads * n : keys + heads * n;
        REAL *d_m = tape->d_m[l] + b * UP(size, LANES) * n, *d_own = d_z + from[l + 1];
        if (l < top || tape->squash_last)
            for (int64_t k = 0; k < heads * m; k++) d_own[k] *= 1 - own[k] * own[k];
        for (int64_t j = 0; j < size; j += LANES) {
            spread(d_m + j * n, d_own + j, m, z_below, heads, n);
            gather(d_z + from[l], d_own + j, m, matrix + j * n, heads, n);
        }
    }
    for (int64_t i = 0; i < 2 * heads; i++) {
        memcpy(d_keys + i * key, d_y + i * padded_key, sizeof(REAL) * key);
        for (int64_t k = 0; i >= heads && k < key; k++) d_keys[i * key + k] += d_z[(i - heads) * padded_key + k];
    }
}
