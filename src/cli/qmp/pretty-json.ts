// JSON for people: indented, but what fits on a line is on one.

const MAX_WIDTH = 100

/** Ends with a newline. */
export const prettyJson = (value: unknown): string => `${write(value, 0)}\n`

function write(value: unknown, indent: number): string {
  const line = onOneLine(value)
  if (typeof value !== 'object' || value === null || indent + line.length <= MAX_WIDTH) return line
  const inner = ' '.repeat(indent + 2)
  const [open, close] = Array.isArray(value) ? '[]' : '{}'
  const members = Array.isArray(value)
    ? value.map(item => write(item, indent + 2))
    : Object.entries(value).map(([name, member]) => `${JSON.stringify(name)}: ${write(member, indent + 2)}`)
  return `${open}\n${members.map(member => `${inner}${member}`).join(',\n')}\n${' '.repeat(indent)}${close}`
}

function onOneLine(value: unknown): string {
  if (typeof value !== 'object' || value === null) return JSON.stringify(value)
  if (Array.isArray(value)) return `[${value.map(onOneLine).join(', ')}]`
  const members = Object.entries(value).map(([name, member]) => `${JSON.stringify(name)}: ${onOneLine(member)}`)
  return members.length > 0 ? `{ ${members.join(', ')} }` : '{}'
}
