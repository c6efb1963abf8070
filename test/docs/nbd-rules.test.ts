// The page that says where each rule of NBD is tested is true.

import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import t from 'tap'

const root = fileURLToPath(new URL('../../../', import.meta.url))
const page = readFileSync(join(root, 'docs/nbd-rules.md'), 'utf8')

t.test('every rule on the page has a test of that name in the file that is named', async t => {
  const rows = [...page.matchAll(/^\| (?!rule \||-)(.*) \|$/gm)].map(([, row]) => row!)
  t.ok(rows.length > 80, `${rows.length} rows`)
  for (const row of rows) {
    const [, file, sentence] = /^.+ \| `([\w./-]+\.test\.ts)`: (.+)$/.exec(row) ?? []
    if (file === undefined || sentence === undefined) t.fail(`no test in: ${row}`)
    else t.ok(readFileSync(join(root, file), 'utf8').includes(sentence), `${file} has no: ${sentence}`)
  }
})
