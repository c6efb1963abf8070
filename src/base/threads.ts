// The threads on which Node does what would keep its main one waiting: reads and writes of files, compression, the calls of base/native.ts.
//
// A call on a disk that hangs keeps its thread until the disk answers, and Node has four of them: four writes to one such disk would stop the whole
// program. So there are more, and no open file has more than a few at once. What begins first here decides how many there are: the program
// imports this before anything else.

/** Where the user has not said otherwise, of those who serve disks. A thread that is never used costs next to nothing, once it is there. */
const THREADS = 128
/** Of a command that has a disk or two, and ends: all threads start when the first is needed, and 128 take a quarter of what an empty program does. */
const FEW_THREADS = 32
const SERVES = new Set(['daemon', 'serve', 'nbd'])
/** Of one open file. With 8 and 32 requests at a time, writes took a fifth more time: what waits here waits for a turn of the main thread. */
export const MOST_OF_A_FILE = 16

process.env['UV_THREADPOOL_SIZE'] ??= String(process.argv.some(word => SERVES.has(word)) ? THREADS : FEW_THREADS)

/** By file descriptor. */
const busy: number[] = []
const waiting = new Map<number, (() => void)[]>()

/** Calls `begin`, at once or when the file has a thread left for it; `endThread` must follow when what was begun has ended. */
export function beginThread(fd: number, begin: () => void) {
  const count = busy[fd] ?? 0
  if (count < MOST_OF_A_FILE) {
    busy[fd] = count + 1
    begin()
    return
  }
  const queue = waiting.get(fd)
  if (queue) queue.push(begin)
  else waiting.set(fd, [begin])
}

export function endThread(fd: number) {
  const queue = waiting.get(fd)
  const next = queue?.shift()
  if (!next) {
    busy[fd]!--
    return
  }
  if (queue!.length === 0) waiting.delete(fd)
  next()
}
