// While something is awaited the event loop does not sleep, and it does again when that leads to nothing.

import { availableParallelism } from 'node:os'
import { setTimeout as sleep } from 'node:timers/promises'
import t from 'tap'
import { Vigil } from '../../src/base/vigil.ts'

const skip = availableParallelism() < 2 && 'with one processor nobody stays awake'
const isAwake = () => process.getActiveResourcesInfo().includes('Immediate')

async function asleep() {
  while (isAwake()) await sleep(1)
}

t.test('the loop stays awake until what is awaited has come, or has not for a while', { skip }, async t => {
  await asleep()
  const vigil = new Vigil()
  vigil.begin()
  t.ok(isAwake())
  await asleep()
  vigil.begin()
  t.notOk(isAwake(), 'once let pass, since it has led to nothing')
  vigil.begin()
  t.ok(isAwake(), 'and tried again')
  vigil.end()
  await asleep()
})

t.test('what leads to nothing over and over is tried ever more rarely, and often again once it has come', { skip }, async t => {
  await asleep()
  const vigil = new Vigil()
  const passed: number[] = []
  for (let tries = 0; tries < 10; tries++) {
    let count = 0
    for (vigil.begin(); !isAwake(); vigil.begin()) count++
    passed.push(count)
    await asleep()
  }
  t.same(passed, [0, 1, 2, 4, 8, 16, 32, 64, 128, 256])
  for (vigil.begin(); !isAwake();) vigil.begin()
  vigil.end()
  await asleep()
  vigil.begin()
  await asleep()
  vigil.begin()
  t.notOk(isAwake())
  vigil.begin()
  t.ok(isAwake(), 'one is let pass, not 256')
  vigil.end()
  await asleep()
})

t.test('one that leads to nothing does not end another', { skip }, async t => {
  await asleep()
  const [old, young] = [new Vigil(), new Vigil()]
  old.begin()
  young.begin()
  old.end()
  t.ok(isAwake())
  young.end()
  await asleep()
  old.begin()
  t.ok(isAwake(), 'what has come is awaited again')
  old.end()
  await asleep()
})
