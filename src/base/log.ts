// The log: one line for each event, for the journal where the daemon is a service, for people where it is not.
//
// A message is a sentence; the fields beside it are what one would search for. An `err` field is an error: its message is shown, and
// with its stack where it is a bug of ours (see errors.ts).

import { fstatSync } from 'node:fs'
import { pino, type DestinationStream, type Level } from 'pino'
import { faultIn, messageOf } from './errors.ts'

export type LogLevel = Level | 'silent'

type Fields = Readonly<Record<string, unknown>>

/** As much of a logger as our code uses. */
export interface Log {
  /** For whoever looks for a fault: off by default. */
  debug(message: string, fields?: Fields): void
  /** What an operator wants to see on a good day. */
  info(message: string, fields?: Fields): void
  /** It went on, and somebody should look. */
  warn(message: string, fields?: Fields): void
  /** Something that was asked for was not done. */
  error(message: string, fields?: Fields): void
  /** The same log with fields that every line has. */
  child(fields: Fields): Log
}

/** The journal's priorities (sd-daemon(3)): a line that begins with `<N>` is stored with it. */
const priorities: Record<string, number> = { trace: 7, debug: 7, info: 6, warn: 4, error: 3, fatal: 2 }

interface LogOptions {
  /** Lines begin with the journal's `<N>`, and have no time: the journal knows it. Default: where standard error is the journal. */
  readonly journal?: boolean
  readonly now?: () => Date
}

/** Writes to standard error, unless told otherwise; the lines are written before the call returns, so a crash loses none. */
export function createLog(
  level: LogLevel,
  stream: DestinationStream = process.stderr,
  { journal = inJournal(), now = () => new Date() }: LogOptions = {},
): Log {
  const lines: DestinationStream = {
    write(record) {
      stream.write(format(JSON.parse(record) as LogRecord, journal ? undefined : now()))
    },
  }
  // pino filters levels, binds fields and serializes what JSON cannot say; the line is made of its record.
  return wrap(
    pino(
      {
        level,
        base: null,
        timestamp: false,
        formatters: { level: label => ({ level: label }) },
        serializers: { err: serializeError },
      },
      lines,
    ),
  )
}

/** systemd names the journal's socket by device and inode (systemd.exec(5)); a service may have sent its standard error elsewhere. */
function inJournal(): boolean {
  const { dev, ino } = fstatSync(2)
  return process.env['JOURNAL_STREAM'] === `${dev}:${ino}`
}

function wrap(logger: pino.Logger): Log {
  const at =
    (level: Level) =>
    (message: string, fields: Fields = {}) =>
      logger[level](fields, message)
  return {
    debug: at('debug'),
    info: at('info'),
    warn: at('warn'),
    error: at('error'),
    child: fields => wrap(logger.child(fields)),
  }
}

/** A Fault's sentence is enough; anything else is a bug, and is told with where it came from. */
const serializeError = (error: unknown) =>
  error instanceof Error && !faultIn(error) ? (error.stack ?? error.message) : messageOf(error)

interface LogRecord {
  readonly level: string
  readonly msg?: string
  readonly err?: string
  readonly [field: string]: unknown
}

function format({ level, msg = '', err, ...fields }: LogRecord, time: Date | undefined): string {
  const priority = `<${priorities[level] ?? 6}>`
  const details = Object.entries(fields).map(([name, value]) => ` ${name}=${plain(value)}`)
  const text = `${msg}${err === undefined ? '' : `: ${err}`}`
  const [first = '', ...rest] = text.split('\n')
  const begin = time ? `${time.toISOString()} ${level.padEnd(5)} ` : priority
  // Lines of a stack stay with their event: indented for people, with the same priority for the journal.
  const more = rest.map(line => `${time ? '' : priority}    ${line}\n`).join('')
  return `${begin}${first}${details.join('')}\n${more}`
}

/** Words as they are; anything with spaces, quotes or control characters as JSON, so that no field can forge a line. */
const plain = (value: unknown) => (typeof value === 'string' && /^[\w./:@%+,-]+$/.test(value) ? value : JSON.stringify(value))
