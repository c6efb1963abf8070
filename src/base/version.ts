// Which release this is, from package.json.

import { readFileSync } from 'node:fs'

/** As in package.json, which is three folders above wherever this has been compiled to. */
export const { version } = JSON.parse(readFileSync(new URL('../../../package.json', import.meta.url), 'utf8')) as {
  readonly version: string
}
