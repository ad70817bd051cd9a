/* The backward pass of `advance_slots` in fast_sequence.c, which includes this file. */

#pragma once

/* Overwrites the gradients of the state after step t by those of the state before it and computes the gradient of the
   interface vector. d_out: gradient of the read vectors; `linkage`: L_{t-1} of each write head. */
static void
slots_backward(const Tape *tape, int64_t t, int64_t b, const REAL *d_out, const REAL *linkage, REAL *scratch) {
    const int64_t n = tape->lead, reads = tape->reads, writes = tape->writes, words = tape->word;
    const int64_t at = t * tape->batch + b, modes = 2 * writes + 1, linkage_size = tape->rows * n,
                  starts = starts_at(tape, at);
    const Parts x = parts_of(tape, tape->vectors + at * tape->width);
    const Parts d = parts_of(tape, tape->d_vectors + at * tape->width);
    const Slots previous = slots_before(tape, at), current = slots_at(tape, at + tape->batch);
    REAL *d_memory = tape->d_memory + b * words * n, *d_usage = tape->d_usage + b * n;
    REAL *d_precedence = tape->d_precedence + b * writes * n, *d_write_weights = tape->d_write_weights + b * writes * n;
    REAL *d_read_weights = tape->d_read_weights + b * reads * n;
    REAL *l_x = take_scratch(&scratch, reads * n), *lt_x = take_scratch(&scratch, reads * n);
    REAL *d_q = take_scratch(&scratch, reads * n);
    REAL *forward_q = take_scratch(&scratch, reads * n), *backward_x = take_scratch(&scratch, reads * n);
    REAL *buffer = take_scratch(&scratch, n), *unwritten = take_scratch(&scratch, n);
    REAL *head_usage = take_scratch(&scratch, writes * n), *a = take_scratch(&scratch, writes * n);
    REAL *d_old_write_weights = take_scratch(&scratch, writes * n);
    REAL *d_w = take_scratch(&scratch, n), *d_c = take_scratch(&scratch, n), *d_head_usage = take_scratch(&scratch, n);

    /* r = M' w^r */
    for (int64_t i = 0; i < reads; i++)
        for (int64_t j = 0; j < words; j++) {
            const REAL d_r = d_out[i * words + j];
            const REAL *m = current.memory + j * n, *w = current.read_weights + i * n;
            for (int64_t k = 0; k < n; k += WIDE) {
                PUT(d_read_weights + i * n + k) = GET(d_read_weights + i * n + k) + d_r * GET(m + k);
                PUT(d_memory + j * n + k) = GET(d_memory + j * n + k) + d_r * GET(w + k);
            }
        }

    /* links and precedence */
    memset(d_q, 0, sizeof(REAL) * reads * n);
    for (int64_t h = 0; h < writes; h++) {
        const REAL *w = current.write_weights + h * n, *p = previous.precedence + h * n;
        REAL *restrict d_p = d_precedence + h * n, *restrict d_write = d_write_weights + h * n;
        for (int64_t i = 0; i < reads; i++) {
            const REAL *mode = x.modes + i * modes, pi_forward = mode[forward_mode_at(tape, h)],
                       pi_backward = mode[backward_mode_at(h)];
            for (int64_t k = 0; k < n; k++) forward_q[i * n + k] = pi_forward * previous.read_weights[i * n + k];
            for (int64_t k = 0; k < n; k++) backward_x[i * n + k] = pi_backward * d_read_weights[i * n + k];
        }
        /* p_t = (1 - Σ w) p_{t-1} + w */
        const REAL d_p_dot_p = dot(d_p, p, n);
        REAL retained = 1;
        for (int64_t k = 0; k < n; k++) retained -= w[k];
        for (int64_t k = 0; k < n; k++) {
            d_write[k] += d_p[k] - d_p_dot_p;
            d_p[k] *= retained;
        }
        const Links links = {
            starts ? tape->zeros : linkage + h * linkage_size,
            tape->d_linkage + (b * writes + h) * linkage_size,
            n,
            tape->rows,
            w,
            p,
            previous.read_weights,
            l_x,
            lt_x,
            d_read_weights,
            forward_q,
            backward_x,
            d_w,
            d_p,
            buffer,
        };
        update_and_follow_links_backward(&links, reads);
        for (int64_t k = 0; k < n; k++) d_write[k] += d_w[k];
        for (int64_t i = 0; i < reads; i++) {
            const REAL *mode = x.modes + i * modes, pi_forward = mode[forward_mode_at(tape, h)],
                       pi_backward = mode[backward_mode_at(h)];
            const REAL *f = lt_x + i * n, *g = l_x + i * n;
            d.modes[i * modes + forward_mode_at(tape, h)] = dot(f, previous.read_weights + i * n, n);
            d.modes[i * modes + backward_mode_at(h)] = dot(g, previous.read_weights + i * n, n);
            for (int64_t k = 0; k < n; k++) d_q[i * n + k] += pi_forward * f[k] + pi_backward * g[k];
        }
    }

    /* content, modes */
    for (int64_t i = 0; i < reads; i++) {
        const REAL *mode = x.modes + i * modes, *c = tape->read_content + (at * reads + i) * n;
        const REAL strength = x.strengths[i], pi_content = mode[content_mode_at(tape)];
        REAL *d_mode = d.modes + i * modes, mean = 0;
        d_mode[content_mode_at(tape)] = dot(d_read_weights + i * n, c, n);
        for (int64_t k = 0; k < n; k++) d_c[k] = pi_content * d_read_weights[i * n + k];
        const REAL d_strength = content_backward(
            current.memory, current.norms, x.keys + i * words, strength + tape->oneplus, c, words, n, d_c, d_memory,
            d.keys + i * words, buffer);
        d.strengths[i] = d_strength * softplus_derivative(strength);
        for (int64_t k = 0; k < modes; k++) mean += d_mode[k] * mode[k];
        for (int64_t k = 0; k < modes; k++) d_mode[k] = mode[k] * (d_mode[k] - mean);
    }

    /* M_t = M_{t-1} ∘ Π (E - w e') + Σ w v' */
    for (int64_t h = 0; h < writes; h++) {
        const REAL *w = current.write_weights + h * n;
        for (int64_t j = 0; j < words; j++) {
            const REAL e = x.erase[h * words + j], v = x.vectors[h * words + j];
            Wide d_erase = {0}, d_vector = {0};
            for (int64_t k = 0; k < n; k += WIDE) {
                Wide others_erased = GET(previous.memory + j * n + k);
                const Wide d_m = GET(d_memory + j * n + k);
                for (int64_t g = 0; g < writes; g++)
                    if (g != h) others_erased *= 1 - x.erase[g * words + j] * GET(current.write_weights + g * n + k);
                d_vector += d_m * GET(w + k);
                d_erase += d_m * GET(w + k) * others_erased;
                PUT(d_write_weights + h * n + k) = GET(d_write_weights + h * n + k) + d_m * (v - e * others_erased);
            }
            d.vectors[h * words + j] = sum_of(d_vector);
            d.erase[h * words + j] = -sum_of(d_erase) * e * (1 - e);
        }
    }
    for (int64_t h = 0; h < writes; h++)
        for (int64_t j = 0; j < words; j++)
            for (int64_t k = 0; k < n; k += WIDE)
                PUT(d_memory + j * n + k) =
                    GET(d_memory + j * n + k) * (1 - x.erase[h * words + j] * GET(current.write_weights + h * n + k));

    /* w^w = g^w (g^a a + (1 - g^a) c) */
    allocations(tape, x, current.usage, tape->order + at * writes * n, head_usage, a, NULL);
    memset(d_head_usage, 0, sizeof(REAL) * n);
    for (int64_t h = writes - 1; h >= 0; h--) {
        const REAL *c = tape->write_content + (at * writes + h) * n, *a_h = a + h * n, *u = head_usage + h * n;
        const REAL allocation_gate = x.allocate[h], gate = x.write[h], strength = x.write_strengths[h],
                   gate_product = allocation_gate * gate;
        const REAL *restrict d_write = d_write_weights + h * n;
        REAL d_gate = 0, d_allocation_gate = 0, d_gate_product = 0;
        for (int64_t k = 0; k < n; k++) {
            d_gate += d_write[k] * (c[k] + allocation_gate * (a_h[k] - c[k]));
            d_allocation_gate += d_write[k] * gate * (a_h[k] - c[k]);
            d_gate_product += d_head_usage[k] * (1 - u[k]) * a_h[k]; /* the next head sees u + (1 - u) g^a g^w a */
            d_w[k] = d_write[k] * gate_product + d_head_usage[k] * (1 - u[k]) * gate_product;
            d_c[k] = d_write[k] * gate * (1 - allocation_gate);
            d_head_usage[k] *= 1 - gate_product * a_h[k];
        }
        allocation_backward(u, tape->order + (at * writes + h) * n, tape->slots, d_w, d_head_usage, buffer);
        d.allocate[h] = (d_allocation_gate + d_gate_product * gate) * allocation_gate * (1 - allocation_gate);
        d.write[h] = (d_gate + d_gate_product * allocation_gate) * gate * (1 - gate);
        const REAL d_strength = content_backward(
            previous.memory, previous.norms, x.write_keys + h * words, strength + tape->oneplus, c, words, n, d_c,
            d_memory, d.write_keys + h * words, buffer);
        d.write_strengths[h] = d_strength * softplus_derivative(strength);
    }

    /* u_t = (u + (1 - Π (1 - w^w)) - ...) ∘ Π (1 - f w^r) = (1 - (1 - u) Π (1 - w^w)) ∘ ψ */
    retention(previous.write_weights, NULL, writes, -1, n, unwritten);
    retention(previous.read_weights, x.free, reads, -1, n, buffer);
    for (int64_t k = 0; k < n; k++) {
        const REAL d_u = d_usage[k] + d_head_usage[k], total_write = 1 - unwritten[k];
        d_w[k] = d_u * (previous.usage[k] + total_write - previous.usage[k] * total_write); /* gradient of ψ */
        d_c[k] = d_u * buffer[k] * (1 - previous.usage[k]); /* gradient of 1 - Π (1 - w^w) */
        d_usage[k] = d_u * buffer[k] * unwritten[k];
    }
    for (int64_t h = 0; h < writes; h++) {
        retention(previous.write_weights, NULL, writes, h, n, unwritten);
        for (int64_t k = 0; k < n; k++)
            d_old_write_weights[h * n + k] = tape->stop_usage_gradient ? 0 : d_c[k] * unwritten[k];
    }
    for (int64_t i = 0; i < reads; i++) {
        const REAL *q = previous.read_weights + i * n, free = x.free[i];
        retention(previous.read_weights, x.free, reads, i, n, unwritten);
        REAL sum = 0;
        for (int64_t k = 0; k < n; k++) {
            sum += d_w[k] * unwritten[k] * q[k];
            d_read_weights[i * n + k] = d_q[i * n + k] - d_w[k] * unwritten[k] * free;
        }
        d.free[i] = -sum * free * (1 - free);
    }
    memcpy(d_write_weights, d_old_write_weights, sizeof(REAL) * writes * n);
    if (!starts) return;
    memset(d_memory, 0, sizeof(REAL) * words * n);
    memset(d_usage, 0, sizeof(REAL) * n);
    memset(d_precedence, 0, sizeof(REAL) * writes * n);
    memset(d_write_weights, 0, sizeof(REAL) * writes * n);
    memset(d_read_weights, 0, sizeof(REAL) * reads * n);
    memset(tape->d_linkage + b * writes * linkage_size, 0, sizeof(REAL) * writes * linkage_size);
}
