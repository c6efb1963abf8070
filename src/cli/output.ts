// Standard output: the answer and nothing else.

/** Writes a text that ends with a newline, or nothing. */
export function print(text: string): void {
  if (text !== '') process.stdout.write(text)
}

/** For programs: one object, one line. */
export const printJson = (value: unknown): void => print(`${JSON.stringify(value)}\n`)

/** Something a person may want to know that is no part of the answer. */
export const note = (text: string): void => void process.stderr.write(`${text}\n`)

/** The same, of interest only while it is true. */
export const tellOnTerminal = (text: string): void => {
  if (process.stderr.isTTY) note(text)
}

/** A reader that has enough (`| head`) ends us quietly; a full disk does not. */
export function watchOutput(): void {
  process.stdout.on('error', (error: NodeJS.ErrnoException) => {
    if (error.code === 'EPIPE') process.exit()
    process.stderr.write(`stillpoint: cannot write to standard output: ${error.message}\n`)
    process.exit(1)
  })
  process.stderr.on('error', (error: NodeJS.ErrnoException) => {
    if (error.code === 'EPIPE') process.exit()
    process.exit(1)
  })
}
