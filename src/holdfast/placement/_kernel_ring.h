/* The ring: sorted points of 64 bits, the slots that own them, and a guide table on their top bits. */

#ifndef HOLDFAST_KERNEL_RING_H
#define HOLDFAST_KERNEL_RING_H

#include "_kernel_base.h"

enum { AHEAD = 3 }; /* how many points a search looks at together */

/* guide[top] says how many points lie below those whose top bits are `top`. It has one to two entries a point, so
 * mostly a search has one point to look at. In all 16 to 20 bytes a point. */
typedef struct {
    Finder base;
    const uint64_t *points; /* count, equal ones in the order of their owners' names, then AHEAD times 2**64 - 1 */
    const uint32_t *owners; /* count + 1: the first again at the end, for keys after the last point */
    uint32_t *guide;        /* 2**(64 - shift) + 1 */
    Py_ssize_t count;
    uint32_t slots; /* above every owner */
    int shift;
    PyObject *points_kept; /* bytes that hold the points, so that views of them outlive the ring */
    PyObject *owners_kept;
} Ring;

/* The first point at or above the place; count where there is none. */
static inline size_t
ring_position(const Ring *ring, uint64_t place)
{
    uint64_t top = place >> ring->shift;
    size_t low = ring->guide[top];
    PREFETCH(&ring->owners[low]);
    const uint64_t *next = ring->points + low;
    /* Nine in ten are found here: three comparisons at once cost less than guessing which of them will be the last. */
    size_t passed = (size_t)(next[0] < place) + (next[1] < place) + (next[2] < place);
    low += passed;
    if (passed < AHEAD) {
        return low;
    }
    size_t high = ring->guide[top + 1];
    while (low < high) { /* long only where a weak hash heaps points up */
        size_t middle = low + (high - low) / 2;
        if (ring->points[middle] < place) {
            low = middle + 1;
        }
        else {
            high = middle;
        }
    }
    return low;
}

static uint32_t
ring_find(const Finder *self, uint64_t place)
{
    const Ring *ring = (const Ring *)self;
    return ring->owners[ring_position(ring, place)];
}

/* A large ring is not in the cache: ask for the lines of many keys at once, then look at them. */
static void
ring_find_many(const Finder *self, const uint64_t *places, uint32_t *slots, size_t count)
{
    enum { TOGETHER = 64, SMALL = 1 << 16 };
    const Ring *ring = (const Ring *)self;
    if (ring->count < SMALL) {
        for (size_t i = 0; i < count; i++) {
            slots[i] = ring->owners[ring_position(ring, places[i])];
        }
        return;
    }
    for (size_t start = 0; start < count; start += TOGETHER) {
        size_t stop = count - start < TOGETHER ? count : start + TOGETHER;
        for (size_t i = start; i < stop; i++) {
            PREFETCH(&ring->guide[places[i] >> ring->shift]);
        }
        for (size_t i = start; i < stop; i++) {
            uint32_t low = ring->guide[places[i] >> ring->shift];
            PREFETCH(&ring->points[low]);
            PREFETCH(&ring->owners[low]);
        }
        for (size_t i = start; i < stop; i++) {
            slots[i] = ring->owners[ring_position(ring, places[i])];
        }
    }
}

/* -- making one */

static void
ring_dealloc(PyObject *op)
{
    Ring *ring = (Ring *)op;
    PyMem_Free(ring->guide);
    Py_XDECREF(ring->points_kept);
    Py_XDECREF(ring->owners_kept);
    free_object(op);
}

/* A ring of `count` points whose arrays are still to be filled: *points, *owners, and the guide. */
static Ring *
ring_alloc(PyTypeObject *type, Py_ssize_t count, uint64_t **points, uint32_t **owners)
{
    if (count < 1 || (uint64_t)count >= UINT32_MAX) {
        PyErr_Format(PyExc_ValueError, "a ring has from 1 to 2**32 - 2 points, not %zd", count);
        return NULL;
    }
    Ring *ring = (Ring *)new_object(type, 0);
    if (ring == NULL) {
        return NULL;
    }
    int bits = 1;
    while ((Py_ssize_t)1 << bits < count) {
        bits++;
    }
    ring->base.find = ring_find;
    ring->base.find_many = ring_find_many;
    ring->count = count;
    ring->shift = 64 - bits;
    ring->guide = PyMem_Malloc((((size_t)1 << bits) + 1) * sizeof *ring->guide);
    ring->points_kept = PyBytes_FromStringAndSize(NULL, (count + AHEAD) * (Py_ssize_t)sizeof(uint64_t));
    ring->owners_kept = PyBytes_FromStringAndSize(NULL, (count + 1) * (Py_ssize_t)sizeof(uint32_t));
    if (ring->guide == NULL || ring->points_kept == NULL || ring->owners_kept == NULL) {
        Py_DECREF(ring);
        return (Ring *)PyErr_NoMemory();
    }
    ring->points = *points = (uint64_t *)PyBytes_AsString(ring->points_kept);
    ring->owners = *owners = (uint32_t *)PyBytes_AsString(ring->owners_kept);
    memset(*points + count, 255, AHEAD * sizeof **points);
    return ring;
}

static void
ring_fill_guide(Ring *ring)
{
    uint64_t tops = UINT64_C(1) << (64 - ring->shift), next = 0;
    for (Py_ssize_t i = 0; i < ring->count; i++) {
        for (uint64_t top = ring->points[i] >> ring->shift; next <= top; next++) {
            ring->guide[next] = (uint32_t)i;
        }
    }
    for (; next <= tops; next++) {
        ring->guide[next] = (uint32_t)ring->count;
    }
}

/* -- reading one */

static PyObject *
ring_points(PyObject *self, void *closure)
{
    return view_of(((Ring *)self)->points_kept, "Q", ((Ring *)self)->count);
}

static PyObject *
ring_owners(PyObject *self, void *closure)
{
    return view_of(((Ring *)self)->owners_kept, "I", ((Ring *)self)->count + 1);
}

/* The walk: an iterator over the slots from a place on, each once. */
typedef struct {
    PyObject_VAR_HEAD
    Ring *ring;
    Py_ssize_t at, left;
    unsigned char seen[]; /* a bit for each slot */
} Walk;

static PyObject *
ring_walk(PyObject *self, PyObject *given)
{
    const Ring *ring = (const Ring *)self;
    PyTypeObject *type = ((Module *)PyType_GetModuleState(Py_TYPE(self)))->walk;
    uint64_t place = PyLong_AsUnsignedLongLong(given);
    if (place == UINT64_MAX && PyErr_Occurred()) {
        return NULL;
    }
    Walk *walk = (Walk *)new_object(type, (Py_ssize_t)ring->slots / 8 + 1);
    if (walk != NULL) {
        walk->ring = (Ring *)Py_NewRef(self);
        walk->at = (Py_ssize_t)ring_position(ring, place);
        walk->left = ring->count;
    }
    return (PyObject *)walk;
}

static PyObject *
walk_next(PyObject *self)
{
    Walk *walk = (Walk *)self;
    const Ring *ring = walk->ring;
    PyObject *next = NULL;
    LOCK(self);
    while (next == NULL && walk->left > 0) {
        walk->left--;
        walk->at = walk->at < ring->count ? walk->at : 0;
        uint32_t slot = ring->owners[walk->at++];
        unsigned char bit = (unsigned char)(1 << slot % 8);
        if (!(walk->seen[slot / 8] & bit)) {
            walk->seen[slot / 8] |= bit;
            next = PyLong_FromUnsignedLong(slot);
        }
    }
    UNLOCK();
    return next;
}

static void
walk_dealloc(PyObject *self)
{
    Py_DECREF(((Walk *)self)->ring);
    free_object(self);
}

#endif
