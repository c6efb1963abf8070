// The list of events has all that the sources emit.

import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import t from 'tap'
import { eventTypes } from '../../src/control/event-types.ts'

const src = fileURLToPath(new URL('../../../src/', import.meta.url))

t.test('every event that is emitted is listed, and every one that is listed is emitted', async t => {
  const texts = readdirSync(src, { recursive: true, encoding: 'utf8' })
    .filter(file => file.endsWith('.ts') && !file.endsWith('event-types.ts'))
    .map(file => readFileSync(join(src, file), 'utf8'))
  const emitted = new Set(texts.flatMap(text => [...text.matchAll(/\bemit\(\s*'([A-Z_]+)'/g)].map(([, name]) => name!)))
  t.ok(emitted.size > 3)
  const listed = new Set(eventTypes.map(({ name }) => name))
  t.equal(listed.size, eventTypes.length)
  t.same(
    [...emitted].filter(name => !listed.has(name)),
    [],
  )
  // Some names reach emit() through a variable.
  t.same(
    [...listed].filter(name => !texts.some(text => text.includes(`'${name}'`))),
    [],
  )
})
