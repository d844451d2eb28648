"""Every limit of the mirror, named, with its reason. Sizes in bytes, times in seconds."""

# --- FUSE -----------------------------------------------------------------------------------------
MAX_WRITE = 1 << 20  # 256 pages: the most that a kernel grants by default; more gains nothing
PAGE = 4096
WHOLE_SLOTS = 8  # of them have all their memory from the beginning, as many as a disk is often given requests at once
READY_BYTES = 64 << 10  # of each other one: what file systems of VMs mostly write at once
REQUEST_SLOTS = 64  # requests taken from the kernel and not yet answered; each holds a buffer while it waits
REQUESTS_PER_TURN = 8  # more would starve the acknowledgements that arrive meanwhile
OTHERS_PER_TURN = 2  # requests that are no writes, while a write is outstanding
COLD_READS = 32  # of one file that are not tried in the page cache after one was not there
COLD_READS_PER_TURN = 8  # begun before the loop looks at the socket again
COLD_READS_BESIDE_WRITES = 1  # the same while a write waits for its acknowledgement
READ_AHEAD = 512 << 10  # bytes behind a read that is not in the page cache and follows another
BYTES_PER_TURN = 256 << 10  # after a write of that size the target is told before the next one is taken
MAX_BACKGROUND = 64  # asynchronous requests that the kernel has under way at once
NAME_BYTES = 255  # NAME_MAX of every file system we run on
XATTR_BYTES = 65536  # XATTR_SIZE_MAX
CACHE_VALID_S = 86400  # nobody but us changes the tree, so the kernel may keep names and attributes
KNOWN_OBJECTS = 100_000  # above it the kernel is asked to forget what it does not use; each takes about 1 KiB
DESCRIPTORS_SPARE = 512  # of RLIMIT_NOFILE: sockets, helpers, logs and what is being opened right now

# --- Stream ---------------------------------------------------------------------------------------
PROTOCOL_VERSION = 2
MAX_MESSAGE = 1 << 20  # the msgpack part of a frame; a listing is cut into parts that stay below it
MAX_PAYLOAD = MAX_WRITE
MAX_TEXT = 1000  # characters of a reason given by the peer, which is printed, logged and shown
RECEIVE_BUFFER = 4 << 20  # holds the largest frame, and several when they come in a burst
SEND_HIGH_WATER = 8 << 20  # above it no more requests are taken from the kernel
HELLO_TIMEOUT_S = 10.0  # a peer that connects and says nothing must not hold the port
SILENCE_TIMEOUT_S = 1.5  # not even the peer's host acknowledges anything: a lost link. More than PROBE_INTERVAL_S
SHORTEST_SILENCE_S = 1.2  # a probe in each PROBE_INTERVAL_S, and a loop that looks ten times a second
STALL_TIMEOUT_S = 10.0  # the peer's host is there, but its mirror answers nothing or gets no further: a lost link
FLUSH_THREADS = 8  # files that are flushed at the same time; more would wait for the same disk
FLUSHES_AT_ONCE = 1024  # of files and directories, asked for and not answered; a good source has REQUEST_SLOTS
FULL_FLUSHES_AT_ONCE = 16  # of the whole file system; each has a thread at the target
BUSY_INTERVAL_S = 1.0  # how often a target that is busy with a flush says so
PROBE_INTERVAL_S = 1.0  # an idle link is probed
RECONNECT_INTERVAL_S = 0.25
RECONNECT_LONGEST_S = 4.0  # doubled up to it while a peer ends each connection before it has answered

# --- Dirty log ------------------------------------------------------------------------------------
EXTENT_SIZE = 4 << 20
EXTENT_SIZE_SMALLEST = 64 << 10
EXTENT_SIZE_LARGEST = 1 << 30
HOT_EXTENTS = (
    32768  # after a crash about so many extents are copied again; fewer cost a flush of both copies more often
)

# --- Reintegration --------------------------------------------------------------------------------
CHUNK = 256 << 10
CHUNK_RETRIES = 3  # after so many interrupted reads the loop reads the chunk itself
CHUNKS_IN_WORK = 8
CHUNK_REST = 6  # times the duration of a chunk that met writes of the VM: until the next one
REINTEGRATION_FLOOR = 24 << 20  # bytes per second, if the servers and the link can, however much the VM writes
# What was copied in so long is copied again after an interruption, at most; each time both file systems are flushed,
# which those who flush on the mount wait for
COPIED_FLUSH_INTERVAL_S = 2.0
LISTING_BYTES = 256 << 10  # of entries in one listing frame; a single entry may be larger
MOVED_OBJECTS = (
    5_000  # looked at to find a moved file, while the VM's writes wait: 0.1 s; in a larger tree it is copied
)
DIRECTORY_BYTES = 512 << 20  # memory for one directory's listing at the target: about 700,000 files
SNAPSHOT_ENTRIES = 20_000  # cloned in some 3 s; more would only be given up when the time is over
SNAPSHOT_S = 10.0  # for slow disks and files in many pieces; the reintegration goes on without from then on
SNAPSHOT_FROZEN_S = 2.0  # the same while the VM's writes wait for it: shorter than any useful fence time
SNAPSHOT_LEFTOVERS = 64  # folders given to one process to be removed; further ones wait for the next

# --- Clean stop -----------------------------------------------------------------------------------
CLEAN_STOP_TABLE_S = 60.0  # a stop must end within what an operator, or systemd, waits for
CHANGED_FILES = 20_000  # told one by one: 360 KB of identities in the welcome; with more, everything is compared
UNMATCHED_FILES = 200_000  # of both listings, waiting for their counterparts: 60 MB

# --- Verify ---------------------------------------------------------------------------------------
CHECKS_IN_FLIGHT = 2  # comparisons at the target, which a live write that comes behind them waits for
CHUNKS_READ_AHEAD = 4  # chunks of a file being read or compared
OBJECTS_PER_CHECK = 24  # names in one comparison: as long as the comparison of one chunk
DIFFERENCES_SHOWN = 100  # further ones are counted
LOOKS = 6  # at an object that is different in another way each time

# --- Handover -------------------------------------------------------------------------------------
HANDOVER_TIMEOUT_S = 30.0  # for a flush of both copies in which nothing is written; the VM has been stopped
HANDOVER_CLOSE_S = 2.0  # the server that has taken over keeps the connection so long for its answer to arrive
FAREWELL_S = 2.0  # and one that leaves, for its last word

# --- Salvage --------------------------------------------------------------------------------------
SALVAGE_CHUNK = 1 << 20
SALVAGE_SPARE = 64 << 20  # left free on its disk: record and dirty log may stand there, and so does the file's index

# --- Control socket -------------------------------------------------------------------------------
WATCHERS = 16  # connections that reports are sent on; a mirror has one supervisor, and each has a thread
BYTES_CHANGED_S = 1.0  # how often it is counted how much a copy that goes on alone has changed
BYTES_CHANGED_REST = 100  # times the duration of the last count: the next one is not before

# --- Spinning -------------------------------------------------------------------------------------
SPIN_S = 100e-6  # longer than a round trip between two servers in one rack, shorter than two wake-ups
