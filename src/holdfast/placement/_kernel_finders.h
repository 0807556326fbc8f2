/* The finders of the other algorithms. Each does in C what the `find` of a class in Python says, which also knows the
 * rest: how a state comes about, the order of all nodes. Such a class gives its state to `native` for a table. */

#ifndef HOLDFAST_KERNEL_FINDERS_H
#define HOLDFAST_KERNEL_FINDERS_H

#include <float.h>
#include <stdlib.h>

#include "_kernel_base.h"
#include "_kernel_ring.h"

#define GOLDEN UINT64_C(0x9E3779B97F4A7C15)

typedef struct {
    Finder base;
    uint64_t *wide;
    double *real; /* NULL where an algorithm needs none */
    uint32_t *narrow, *more;
    uint32_t count;
    Ring *ring;
} Native;

/* The next bucket of jump consistent hashing after this one. */
static inline uint64_t
jump_on(uint64_t bucket, uint64_t *value)
{
    *value = *value * UINT64_C(2862933555777941757) + 1;
    return (uint64_t)((double)(bucket + 1) * (2147483648.0 / (double)((*value >> 33) + 1)));
}

static uint32_t
jump_find(const Finder *self, uint64_t place)
{
    uint64_t bucket = 0, after = 0, slots = ((const Native *)self)->count;
    while (after < slots) {
        bucket = after;
        after = jump_on(bucket, &place);
    }
    return (uint32_t)bucket;
}

/* Choose: which slots have a node. For what this does see `jump.walk`. */

typedef struct {
    uint32_t slot, index;
} Inserted;

/* Note at which place a slot is inserted, where that is not known yet; they are kept sorted by slot. */
static size_t
insert_slot(Inserted *inserted, size_t count, uint32_t slot, uint32_t index)
{
    size_t at = count;
    while (at > 0 && inserted[at - 1].slot > slot) {
        at--;
    }
    if (at > 0 && inserted[at - 1].slot == slot) {
        return count;
    }
    memmove(inserted + at + 1, inserted + at, (count - at) * sizeof *inserted);
    inserted[at] = (Inserted){slot, index};
    return count + 1;
}

static uint32_t
occupied_find(const Finder *self, uint64_t place)
{
    const Native *native = (const Native *)self;
    uint32_t found = jump_find(self, place), slots = native->count, begin = 0, end = slots < 4 ? slots : 4;
    if (native->narrow[found]) {
        return found;
    }
    Inserted *inserted = NULL;
    uint32_t *order = NULL;
    size_t count = 0, room = 0;
    found = UINT32_MAX; /* what no table has: where no slot has a node, or memory ran out */
    while (found == UINT32_MAX && begin < slots) {
        for (uint32_t index = begin; index < end; index++) {
            uint64_t value = index ? mixed(place + index * GOLDEN) : place;
            for (uint64_t bucket = 0; bucket < slots - index; bucket = jump_on(bucket, &value)) {
                if (count == room) {
                    room = room ? 2 * room : 64;
                    Inserted *larger = realloc(inserted, room * sizeof *inserted);
                    if (larger == NULL) {
                        goto done;
                    }
                    inserted = larger;
                }
                count = insert_slot(inserted, count, (uint32_t)bucket + index, index);
            }
        }
        uint32_t *longer = realloc(order, ((size_t)end + 1) * sizeof *order);
        if (longer == NULL) {
            goto done;
        }
        order = longer;
        for (uint32_t i = 0, size = 0; i < count; i++) {
            uint32_t at = inserted[i].index < size ? inserted[i].index : size;
            memmove(order + at + 1, order + at, (size - at) * sizeof *order);
            order[at] = inserted[i].slot;
            size = size < end ? size + 1 : end;
        }
        for (; begin < end && found == UINT32_MAX; begin++) {
            found = native->narrow[order[begin]] ? order[begin] : UINT32_MAX;
        }
        begin = end;
        end = end < slots / 2 ? 2 * end : slots;
    }
done:
    free(inserted);
    free(order);
    return found;
}

/* Maglev: the slot of each place in a table. */
static uint32_t
entries_find(const Finder *self, uint64_t place)
{
    const Native *native = (const Native *)self;
    return native->narrow[place % native->count];
}

/* Multi-probe: `count` looks at a ring; the first of the nearest counts. */
static uint32_t
nearest_find(const Finder *self, uint64_t place)
{
    const Ring *ring = ((const Native *)self)->ring;
    uint64_t nearest = UINT64_MAX;
    size_t found = SIZE_MAX;
    for (uint32_t i = 0; i < ((const Native *)self)->count; i++) {
        uint64_t probe = mixed(place + i * GOLDEN);
        size_t index = ring_position(ring, probe), at = index < (size_t)ring->count ? index : 0;
        uint64_t distance = ring->points[at] - probe; /* modulo 2**64: round the circle */
        if (distance < nearest || found == SIZE_MAX) {
            nearest = distance;
            found = at;
        }
    }
    return ring->owners[found];
}

/* Rendezvous: seeds of the names, in their order; the highest number wins, or the lowest score by weight. */

static uint32_t
highest_find(const Finder *self, uint64_t place)
{
    const Native *native = (const Native *)self;
    uint64_t best = 0;
    uint32_t found = 0;
    for (uint32_t i = 0; i < native->count; i++) {
        uint64_t number = mixed(place ^ native->wide[i]);
        found = number > best ? i : found;
        best = number > best ? number : best;
    }
    return native->narrow[found];
}

/* See `scores.minus_log2`. The table of logarithms stands behind the seeds. */
static inline double
minus_log2(const uint64_t *table, uint64_t value)
{
    enum { BITS = 47, LINES = 10, REST = BITS - LINES - 11 };
    uint64_t zeros = 0;
    value |= 1;
#if defined(__GNUC__) || defined(__clang__)
    zeros = (uint64_t)__builtin_clzll(value);
#else
    while (!(value << zeros >> 63)) {
        zeros++;
    }
#endif
    value <<= zeros;
    uint64_t line = value >> (63 - LINES) & ((1 << LINES) - 1);
    uint64_t rest = value >> (63 - LINES - REST) & ((1 << REST) - 1);
    return (double)(((zeros + 1) << BITS) - table[line] - ((table[line + 1] - table[line]) * rest >> REST));
}

static uint32_t
lightest_find(const Finder *self, uint64_t place)
{
    const Native *native = (const Native *)self;
    double best = 0;
    uint64_t highest = 0;
    uint32_t found = UINT32_MAX;
    for (uint32_t i = 0; i < native->count; i++) {
        uint64_t number = mixed(place ^ native->wide[i]);
        double score = minus_log2(native->wide + native->count, number) / native->real[i];
        if (found == UINT32_MAX || score < best || (score == best && number > highest)) {
            best = score;
            highest = number;
            found = i;
        }
    }
    return native->narrow[found];
}

/* Anchor: the paper's arrays A and K. */
static uint32_t
anchor_find(const Finder *self, uint64_t place)
{
    const Native *native = (const Native *)self;
    uint32_t bucket = (uint32_t)(mixed(place) % native->count);
    for (uint32_t left; (left = native->narrow[bucket]) != 0;) {
        uint32_t after = (uint32_t)(mixed(place + ((uint64_t)bucket + 1) * GOLDEN) % left), steps = 0;
        while (native->narrow[after] >= left && steps++ < native->count) {
            after = native->more[after];
        }
        if (steps > native->count) {
            return UINT32_MAX; /* no state of this algorithm: each bucket goes on to one that went later, or works */
        }
        bucket = after;
    }
    return bucket;
}

/* -- making one */

static void
native_find_many(const Finder *self, const uint64_t *places, uint32_t *slots, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        slots[i] = self->find(self, places[i]);
    }
}

static void
native_dealloc(PyObject *op)
{
    Native *native = (Native *)op;
    PyMem_Free(native->wide);
    PyMem_Free(native->real);
    PyMem_Free(native->narrow);
    PyMem_Free(native->more);
    Py_XDECREF((PyObject *)native->ring);
    free_object(op);
}

/* A copy of a buffer or sequence of numbers below `above`: *count of them, or any number where that is 0. */
static uint32_t *
narrow_copy(PyObject *given, uint32_t *count, uint64_t above)
{
    Numbers numbers = {0};
    uint32_t *copy = NULL;
    if (take_numbers(given, &numbers) == 0) {
        int fits = numbers.count > 0 && (uint64_t)numbers.count < UINT32_MAX && (!*count || *count == numbers.count);
        copy = fits ? PyMem_Malloc((size_t)numbers.count * sizeof *copy) : NULL;
        for (Py_ssize_t i = 0; copy != NULL && i < numbers.count; i++) {
            uint64_t number = number_at(&numbers, i);
            copy[i] = (uint32_t)number;
            fits = fits && number < above;
        }
        *count = (uint32_t)numbers.count;
        if (!fits) {
            PyMem_Free(copy);
            copy = NULL;
            PyErr_SetString(PyExc_ValueError, "these are not the numbers of a finder");
        }
        else if (copy == NULL) {
            PyErr_NoMemory();
        }
    }
    drop_numbers(&numbers);
    return copy;
}

static int
native_jump(Native *native, PyObject *args)
{
    unsigned int slots;
    if (!PyArg_ParseTuple(args, "I:jump", &slots)) {
        return -1;
    }
    if (slots < 1 || slots > INT32_MAX) {
        PyErr_SetString(PyExc_ValueError, "from 1 to 2**31 - 1 slots");
        return -1;
    }
    native->count = slots;
    native->base.find = jump_find;
    return 0;
}

static int
native_occupied(Native *native, PyObject *args)
{
    PyObject *slots;
    if (!PyArg_ParseTuple(args, "O:occupied", &slots)) {
        return -1;
    }
    native->narrow = narrow_copy(slots, &native->count, 2);
    native->base.find = occupied_find;
    return native->narrow ? 0 : -1;
}

static int
native_entries(Native *native, PyObject *args)
{
    PyObject *entries;
    if (!PyArg_ParseTuple(args, "O:entries", &entries)) {
        return -1;
    }
    native->narrow = narrow_copy(entries, &native->count, UINT32_MAX);
    native->base.find = entries_find;
    return native->narrow ? 0 : -1;
}

static int
native_nearest(Native *native, PyObject *args, PyTypeObject *ring_type)
{
    PyObject *ring;
    unsigned int probes;
    if (!PyArg_ParseTuple(args, "O!I:nearest", ring_type, &ring, &probes)) {
        return -1;
    }
    if (probes < 1) {
        PyErr_SetString(PyExc_ValueError, "at least one probe");
        return -1;
    }
    native->ring = (Ring *)Py_NewRef(ring);
    native->count = probes;
    native->base.find = nearest_find;
    return 0;
}

/* best(seeds, slots, weights or None, logarithms): slots of the seeds, and their weights where they differ */
static int
native_best(Native *native, PyObject *args)
{
    PyObject *given_seeds, *given_slots, *given_weights, *given_logs;
    if (!PyArg_ParseTuple(args, "OOOO:best", &given_seeds, &given_slots, &given_weights, &given_logs)) {
        return -1;
    }
    Numbers seeds = {0}, logs = {0};
    PyObject *weights = NULL;
    int failed = -1;
    native->narrow = narrow_copy(given_slots, &native->count, UINT32_MAX);
    if (native->narrow == NULL || take_numbers(given_seeds, &seeds) < 0 || take_numbers(given_logs, &logs) < 0) {
        goto done;
    }
    if (seeds.count != native->count || logs.count != 1025) {
        PyErr_SetString(PyExc_ValueError, "as many seeds as slots, and 1025 logarithms");
        goto done;
    }
    native->wide = PyMem_Malloc((size_t)(seeds.count + logs.count) * sizeof *native->wide);
    native->real = PyMem_Calloc((size_t)seeds.count, sizeof *native->real);
    if (native->wide == NULL || native->real == NULL) {
        PyErr_NoMemory();
        goto done;
    }
    for (Py_ssize_t i = 0; i < seeds.count + logs.count; i++) {
        native->wide[i] = i < seeds.count ? number_at(&seeds, i) : number_at(&logs, i - seeds.count);
    }
    native->base.find = given_weights == Py_None ? highest_find : lightest_find;
    if (given_weights != Py_None) {
        weights = PySequence_Tuple(given_weights);
        if (weights == NULL || PyTuple_Size(weights) != seeds.count) {
            PyErr_SetString(PyExc_ValueError, "as many weights as slots");
            goto done;
        }
        for (Py_ssize_t i = 0; i < seeds.count; i++) {
            native->real[i] = PyFloat_AsDouble(PyTuple_GetItem(weights, i));
        }
    }
    failed = PyErr_Occurred() ? -1 : 0;
done:
    drop_numbers(&seeds);
    drop_numbers(&logs);
    Py_XDECREF(weights);
    return failed;
}

static int
native_anchor(Native *native, PyObject *args)
{
    PyObject *left, *instead;
    if (!PyArg_ParseTuple(args, "OO:anchor", &left, &instead)) {
        return -1;
    }
    native->narrow = narrow_copy(left, &native->count, UINT32_MAX);
    native->more = native->narrow ? narrow_copy(instead, &native->count, native->count) : NULL;
    native->base.find = anchor_find;
    for (uint32_t i = 0; native->more && i < native->count; i++) {
        if (native->narrow[i] > native->count) {
            PyErr_SetString(PyExc_ValueError, "no removal leaves more buckets than there are");
            return -1;
        }
    }
    return native->more ? 0 : -1;
}

/* native(kind, *state): a finder in C, or None where this machine's floating point is not IEEE's to the bit */
static PyObject *
kernel_native(PyObject *self, PyObject *args)
{
    Module *module = PyModule_GetState(self);
    PyObject *state = PyTuple_GetSlice(args, 1, PyTuple_Size(args));
    PyObject *kind = PyTuple_Size(args) ? PyTuple_GetItem(args, 0) : NULL;
    if (state == NULL || kind == NULL || !PyUnicode_Check(kind)) {
        Py_XDECREF(state);
        PyErr_SetString(PyExc_TypeError, "native takes the kind of a finder, and its state");
        return NULL;
    }
    Native *native = (Native *)new_object(module->native, 0);
    int failed = -1;
    if (native != NULL) {
        native->base.find_many = native_find_many;
        if (PyUnicode_CompareWithASCIIString(kind, "jump") == 0) {
            failed = native_jump(native, state);
        }
        else if (PyUnicode_CompareWithASCIIString(kind, "occupied") == 0) {
            failed = native_occupied(native, state);
        }
        else if (PyUnicode_CompareWithASCIIString(kind, "entries") == 0) {
            failed = native_entries(native, state);
        }
        else if (PyUnicode_CompareWithASCIIString(kind, "nearest") == 0) {
            failed = native_nearest(native, state, module->ring);
        }
        else if (PyUnicode_CompareWithASCIIString(kind, "best") == 0) {
            failed = native_best(native, state);
        }
        else if (PyUnicode_CompareWithASCIIString(kind, "anchor") == 0) {
            failed = native_anchor(native, state);
        }
        else {
            PyErr_Format(PyExc_ValueError, "there is no finder %R in C", kind);
        }
    }
    Py_DECREF(state);
    if (failed) {
        Py_CLEAR(native);
        return NULL;
    }
    if (FLT_EVAL_METHOD != 0) {
        Py_DECREF((PyObject *)native);
        Py_RETURN_NONE;
    }
    return (PyObject *)native;
}

#undef GOLDEN

#endif
