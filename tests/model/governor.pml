/* SPDX-License-Identifier: MIT */
/*
 * governor - the protocol of lease, wait, grant, cancel and deadline, for Spin
 *
 * Two owners charge and refund one unit at a time, from their leases or from the
 * word; a third wants more at once, waits, and may be late or cancel. Each atomic
 * instruction of ledger.[ch], lease.c, charge.c and wait.c is one step here. Orders
 * of memory are not in it: but for the word, which is one location, what needs more
 * is ordered by the barrier of leases, a step of its own.
 *
 *      assert    the word never passes hard, and never has less than all books
 *      assert    nobody is passed more than BYPASS times
 *      end       all processes end: a waiter that is forgotten is an invalid end
 *
 * BROKEN = 1 .. 6 leaves something out; Spin must find it.
 */
#ifndef BROKEN
#define BROKEN 0
#endif
#define HARD   3
#define BYPASS 1
#define WANT   2 /* of the waiter */
#ifndef TURNS
#define TURNS 2 /* of each owner */
#endif

byte word = 0;        /* bytes in the word: charged and leased */
bool waiting = false; /* WAITING */
bool shut = false;    /* CLOSED */
bool lock = false;

byte lease[2];
byte held[3];
bool busy[2];
bool closed[2];
bool queued = false; /* the waiter is in its lane */
bool granted = false;
byte passed = 0;

#define LOCK   atomic { !lock -> lock = true }
#define UNLOCK lock = false
#define BOOKS  (held[0] + held[1] + held[2])
#define TRUE_ALWAYS                                                                                \
 assert(word <= HARD);                                                                             \
 assert(word >= BOOKS)

/* What a refund looks for in the word it has changed: somebody waits, or leases can begin again. */
#define SEEN (waiting || (shut && word == 0))

/* ---- Under the lock ---------------------------------------------------------------- */

/* leases_recall(): closed, a barrier, and what nobody is busy with. */
inline close_all(me)
{
    shut = true;
    closed[0] = true;
    closed[1] = true;
    /* The barrier. Whoever is not busy now sees closed before he is. */
    i = 0;
    do
    :: i < 2 ->
#if BROKEN == 1
       if
       :: true ->
#else
       if
       :: !busy[i] ->
#endif
          taken = lease[i];
          lease[i] = 0;
          atomic { word = word - taken; TRUE_ALWAYS }
       :: else -> skip
       fi;
       i++
    :: else -> break
    od
}

inline grant_fitting()
{
    if
    :: queued ->
       atomic {
           if
           :: word + WANT <= HARD ->
              word = word + WANT;
              TRUE_ALWAYS;
              held[2] = held[2] + WANT;
              queued = false;
              granted = true
           :: else -> skip
           fi
       }
    :: else -> skip
    fi
}

/* weir__governor_grant(): first the flag, then the look; then without leases. */
inline grant(me)
{
#if BROKEN != 2
    if
    :: queued -> waiting = true
    :: else -> skip
    fi;
#endif
    grant_fitting();
#if BROKEN != 3
    if
    :: queued && !shut ->
       close_all(me);
       grant_fitting()
    :: else -> skip
    fi;
#endif
#if BROKEN == 2
    if
    :: queued -> waiting = true
    :: else -> skip
    fi;
#endif
    if
    :: !queued -> waiting = false
    :: else -> skip
    fi
}

inline relieve(me)
{
    LOCK;
    grant(me);
    if
    :: !waiting -> shut = false
    :: else -> skip
    fi;
    UNLOCK
}

/* ---- An owner ------------------------------------------------------------------------ */

/* lease_surrender() */
inline surrender(me)
{
    LOCK;
    taken = lease[me];
    lease[me] = 0;
    atomic { word = word - taken; TRUE_ALWAYS };
    grant(me);
    UNLOCK
}

inline leave(me)
{
    busy[me] = false;
#if BROKEN != 4
    if
    :: closed[me] && lease[me] > 0 -> surrender(me)
    :: else -> skip
    fi
#endif
}

/* weir_account_refund(): to the lease, or books first and then the word. */
inline refund(me)
{
    done = false;
    busy[me] = true;
    if
    :: !closed[me] && lease[me] < 1 ->
       held[me] = held[me] - 1;
       lease[me] = lease[me] + 1;
       done = true
    :: else -> skip
    fi;
    leave(me);
    if
    :: !done ->
       held[me] = held[me] - 1;
       atomic { word = word - 1; TRUE_ALWAYS; seen = SEEN };
       if
       :: seen -> relieve(me)
       :: else -> skip
       fi
    :: else -> skip
    fi
}

/* Under the lock, with a queue: past the waiter, but not too often. */
inline charge_crowded(me)
{
    LOCK;
    grant(me);
    atomic {
        if
#if BROKEN == 5
        :: word < HARD ->
#else
        :: word < HARD && (!queued || passed < BYPASS) ->
#endif
           word = word + 1;
           TRUE_ALWAYS;
           done = true;
           if
           :: queued -> passed++; assert(passed <= BYPASS)
           :: else -> skip
           fi
        :: else -> skip
        fi
    };
    if
    :: done -> held[me] = held[me] + 1
    :: else -> skip
    fi;
    UNLOCK
}

/* charge_calmly(): one for now, and one for the lease if it is open. */
inline charge_word(me)
{
    extra = 0;
    atomic {
        crowded = waiting;
        if
#if BROKEN == 6
        :: !waiting && !shut && !closed[me] && word + 1 <= HARD ->
#else
        :: !waiting && !shut && !closed[me] && lease[me] == 0 && word + 2 <= HARD ->
#endif
           extra = 1;
           word = word + 2;
           done = true
        :: else ->
           if
           :: !waiting && word + 1 <= HARD -> word = word + 1; done = true
           :: else -> skip
           fi
        fi;
        TRUE_ALWAYS
    };
    if
    :: done -> held[me] = held[me] + 1
    :: else -> skip
    fi;
    if
    :: extra > 0 -> /* weir__lease_fill() */
       busy[me] = true;
       if
       :: !closed[me] -> lease[me] = lease[me] + 1; extra = 0
       :: else -> skip
       fi;
       leave(me);
       if
       :: extra > 0 ->
          atomic { word = word - 1; TRUE_ALWAYS; seen = SEEN };
          if
          :: seen -> relieve(me)
          :: else -> skip
          fi
       :: else -> skip
       fi
    :: done && extra == 0 && closed[me] && !shut -> /* weir__lease_open() */
       LOCK;
       if
       :: !shut -> closed[me] = false
       :: else -> skip
       fi;
       UNLOCK
    :: else -> skip
    fi;
    if
    :: !done && crowded -> charge_crowded(me)
    :: else -> skip
    fi
}

inline charge(me)
{
    done = false;
    busy[me] = true;
    if
    :: !closed[me] && lease[me] > 0 ->
       lease[me] = lease[me] - 1;
       held[me] = held[me] + 1;
       done = true
    :: else -> skip
    fi;
    leave(me);
    if
    :: !done -> charge_word(me)
    :: else -> skip
    fi
}

proctype owner(byte me)
{
    byte i, taken, extra, turns;
    bool done, seen, crowded;

    do
    :: turns < TURNS ->
       turns++;
       if
       :: charge(me)
       :: held[me] > 0 -> refund(me)
       fi
    :: else -> break
    od;
    do
    :: held[me] > 0 -> refund(me)
    :: held[me] <= (me == 0 -> 1 : 0) -> break
    od
    /* It keeps its lease, one of them perhaps a unit, and does nothing any more. */
}

/* ---- The waiter ----------------------------------------------------------------------- */

proctype waiter()
{
    byte i, taken;
    bool seen, gone, patient;

    if
    :: patient = true /* no deadline: if it is forgotten, the end is invalid */
    :: patient = false
    fi;
    LOCK;
    queued = true;
    granted = false;
    grant(2);
    UNLOCK;

    if
    :: granted -> skip /* sleeps until then */
    :: !patient && !lock -> /* late, or it cancels */
       LOCK;
       if
       :: queued ->
          queued = false;
          gone = true;
          grant(2);
       :: else -> skip
       fi;
       UNLOCK
    fi;

    if
    :: !gone ->
       assert(granted);
       held[2] = held[2] - WANT;
       atomic { word = word - WANT; TRUE_ALWAYS; seen = SEEN };
       if
       :: seen -> relieve(2)
       :: else -> skip
       fi
    :: else -> skip
    fi
}

init {
    atomic {
        closed[0] = true;
        closed[1] = true;
        run owner(0);
        run owner(1);
        run waiter()
    };
    _nr_pr == 1;
    assert(BOOKS <= 1);
    assert(word == BOOKS + lease[0] + lease[1]);
    assert(!waiting)
}
