// Makes a Debian package of this checkout: npm run package -- [--out FOLDER] [--arch amd64|arm64] [--version VERSION] [--fast]
//
// With it comes all that it needs on a Debian 12 or newer: Node, the npm packages, units, man pages, completion. The same checkout gives the
// same bytes; SOURCE_DATE_EPOCH says which time its files get, in place of the last commit's. --fast
// is for trials: not compressed, and made in seconds; --without-runtime leaves Node out, which is then others' to bring. Prints the path of the package.

import { mkdirSync, mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join, resolve } from 'node:path'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'
import { buildDeb } from './package/deb.mjs'
import { architectures } from './package/production-tree.mjs'

const root = dirname(dirname(fileURLToPath(import.meta.url)))
const mine = Object.keys(architectures).find(name => architectures[name] === process.arch)
const { values } = parseArgs({
  options: {
    out: { type: 'string', default: join(root, 'dist/package') },
    arch: { type: 'string', default: mine },
    version: { type: 'string' },
    fast: { type: 'boolean', default: false },
    'without-runtime': { type: 'boolean', default: false },
  },
})

const folder = mkdtempSync(join(tmpdir(), 'stillpoint-package-'))
try {
  const [stage, scratch] = ['stage', 'scratch'].map(name => join(folder, name))
  for (const path of [stage, scratch]) mkdirSync(path)
  const { out, arch: architecture, version, fast, 'without-runtime': bare } = values
  console.log(buildDeb({ root, out: resolve(out), architecture, version, fast, runtime: !bare, stage, scratch }))
} catch (error) {
  console.error(`package: ${error.message}`)
  process.exitCode = 1
} finally {
  rmSync(folder, { recursive: true })
}
