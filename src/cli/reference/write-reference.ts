// Writes the man page and the reference in docs/command-line.md anew (npm run reference).

import { readFile, writeFile } from 'node:fs/promises'
import { fileURLToPath } from 'node:url'
import { version } from '../../base/version.ts'
import { commands } from '../commands/index.ts'
import { manPage } from './man-page.ts'
import { reference } from './markdown.ts'

const BEGIN = '<!-- From here on: npm run reference. -->\n'

const all = commands(async () => undefined)

export const manPageText = manPage(all, version)

/** The page with its reference as it should be. */
export function withReference(page: string): string {
  const end = page.indexOf(BEGIN)
  if (end < 0) throw new Error(`docs/command-line.md has no line ${BEGIN}`)
  return `${page.slice(0, end)}${BEGIN}\n${reference(all)}\n`
}

if (import.meta.main) {
  const docs = fileURLToPath(new URL('../../../../docs/', import.meta.url))
  await writeFile(`${docs}stillpoint.1`, manPageText)
  await writeFile(`${docs}command-line.md`, withReference(await readFile(`${docs}command-line.md`, 'utf8')))
}
