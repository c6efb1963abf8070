// The log's lines: for the journal, for people, and safe from what peers say.

import t from 'tap'
import { InvalidParameter } from '../../src/base/errors.ts'
import { createLog, type LogLevel } from '../../src/base/log.ts'

function recorded(level: LogLevel, journal: boolean) {
  let text = ''
  const log = createLog(
    level,
    { write: (chunk: string) => void (text += chunk) },
    { journal, now: () => new Date('2026-11-24T10:00:00.5Z') },
  )
  return { log, text: () => text }
}

t.test('the journal gets priorities and no time', async t => {
  const { log, text } = recorded('debug', true)
  log.debug('looking')
  log.info('listening', { socket: '/run/nbd.sock', clients: 3 })
  log.warn('odd')
  log.error('lost')
  t.equal(text(), '<7>looking\n<6>listening socket=/run/nbd.sock clients=3\n<4>odd\n<3>lost\n')
})

t.test('people get the time and the level', async t => {
  const { log, text } = recorded('info', false)
  log.debug('unseen')
  log.child({ machine: 'db' }).child({ session: 's1' }).info('backup begun', { since: undefined })
  t.equal(text(), '2026-11-24T10:00:00.500Z info  backup begun machine=db session=s1\n')
})

t.test('a foreseen error is a sentence, a bug has its stack with it', async t => {
  const { log, text } = recorded('info', true)
  log.error('refused', { err: new InvalidParameter('no such disk'), machine: 'db' })
  t.equal(text(), '<3>refused: no such disk machine=db\n')
  log.error('both', { err: new SuppressedError(new InvalidParameter('nor undone'), new InvalidParameter('not done')) })
  t.match(text(), /\n<3>both: not done; and then: nor undone\n$/)
  log.error('bug', { err: new TypeError('x is undefined') })
  const lines = text().split('\n').slice(2, -1)
  t.equal(lines[0], '<3>bug: TypeError: x is undefined')
  t.ok(lines.length > 1 && lines.slice(1).every(line => /^<3> +at /.test(line)), 'each line of the stack has the priority')
  log.error('thrown text', { err: 'just text' })
  t.match(text(), '<3>thrown text: just text\n')
})

t.test('what a peer says cannot forge a line', async t => {
  const { log, text } = recorded('info', true)
  log.info('export asked for', { name: 'a\n<0>forged', size: 10n, odd: { deep: ['x y'] } })
  t.equal(text().split('\n').length, 2, text())
  t.match(text(), 'name="a\\n<0>forged"')
})

t.test('silent is silent', async t => {
  const { log, text } = recorded('silent', false)
  log.error('nobody hears this')
  t.equal(text(), '')
})
