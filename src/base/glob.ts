// Patterns as people write them for names: * stands for anything, ? for one character; all else for itself.

const WILD: ReadonlyMap<string, string> = new Map([
  ['*', '.*'],
  ['?', '.'],
])

export const glob = (pattern: string): RegExp => {
  const parts = pattern.split(/([*?])/).map(part => WILD.get(part) ?? part.replaceAll(/[\\^$.+()[\]{}|/-]/g, String.raw`\$&`))
  return new RegExp(`^${parts.join('')}$`, 's')
}
