// Rules of access: which client finds which exports.

import fc from '../helpers/property.ts'
import t from 'tap'
import { glob } from '../../src/base/glob.ts'
import { isAddressOrNetwork, network } from '../../src/base/networks.ts'
import { accessBy, type Access, type AccessRule } from '../../src/nbd-server/access.ts'
import type { Peer } from '../../src/nbd-server/link.ts'

const certified = (subject: string, commonName: string, alternativeNames = ''): Peer => ({
  address: '192.0.2.7:4000',
  host: '192.0.2.7',
  tls: { certificate: { subject, commonName, alternativeNames } },
})
const user = (name: string): Peer => ({ address: '[2001:db8::9]:1', host: '2001:db8::9', tls: { user: name } })
const unix: Peer = { address: 'unix' }
const backup = certified('O=Example,CN=backup', 'backup', 'DNS:backup.example.net, IP Address:192.0.2.7')

t.test('a rule opens exports where all of its conditions hold, and nothing else does', async t => {
  const cases: [rules: AccessRule[], peer: Peer, name: string, opens: Access][] = [
    [[{}], unix, 'db/root', true],
    [[], unix, 'db/root', false],
    [[{ exports: ['db/*'] }], unix, 'db/root', true],
    [[{ exports: ['db/*'] }], unix, 'web/root', false],
    [[{ exports: ['db/*'] }], unix, 'a/db/root', false],
    [[{ exports: ['db/r??t', 'x'] }], unix, 'x', true],
    [[{ exports: ['a.c'] }], unix, 'abc', false],
    [[{ certificate: 'backup' }], backup, 'x', true],
    [[{ certificate: 'Backup' }], backup, 'x', false],
    [[{ certificate: 'back' }], backup, 'x', false],
    [[{ certificate: 'O=Example,CN=*' }], backup, 'x', true],
    [[{ certificate: 'CN=backup' }], backup, 'x', false],
    [[{ certificate: 'DNS:*.example.net' }], backup, 'x', true],
    [[{ certificate: 'DNS:192.0.2.7' }], backup, 'x', false],
    [[{ certificate: '*' }], unix, 'x', false],
    [[{ certificate: '*' }], user('backup'), 'x', false],
    // A common name that is written like something else is that name, and no more.
    [[{ certificate: 'O=Example,CN=backup' }], certified('CN=O\\=Example\\,CN\\=backup', 'O=Example,CN=backup'), 'x', false],
    [[{ user: 'b*' }], user('backup'), 'x', true],
    [[{ user: 'backup' }], backup, 'x', false],
    [[{ address: '192.0.2.0/24' }], backup, 'x', true],
    [[{ address: '192.0.2.8/31' }], backup, 'x', false],
    [[{ address: '2001:db8::/32' }], user('a'), 'x', true],
    [[{ address: '0.0.0.0/0' }], unix, 'x', false],
    [[{ certificate: 'backup', address: '198.51.100.0/24' }], backup, 'x', false],
    [[{ certificate: 'other' }, { certificate: 'backup', exports: ['y'] }, { exports: ['z'] }], backup, 'y', true],
    [[{ certificate: 'other' }, { certificate: 'backup', exports: ['y'] }, { exports: ['z'] }], backup, 'x', false],
    [[{ readOnly: true }], unix, 'x', 'read-only'],
    [[{ readOnly: true, exports: ['y'] }], unix, 'x', false],
    [[{ readOnly: true }, { certificate: 'backup' }], backup, 'x', true],
    [[{ certificate: 'backup' }, { readOnly: true }], user('a'), 'x', 'read-only'],
    [[{ readOnly: true }, { readOnly: true, exports: ['x'] }], unix, 'x', 'read-only'],
    [[{ readOnly: false }], unix, 'x', true],
  ]
  for (const [rules, peer, name, opens] of cases)
    t.equal(accessBy(rules)(peer, { name }), opens, JSON.stringify([rules, peer, name]))
})

/** Its four bytes as a number. */
const word = (address: readonly number[]) => address.reduce((sum, byte) => sum * 256 + byte, 0)

t.test('a network holds the addresses that begin with its bits, also as an IPv6 socket writes those of IPv4', async t => {
  const octets = fc.array(fc.integer({ min: 0, max: 255 }), { minLength: 4, maxLength: 4 })
  fc.assert(
    fc.property(octets, octets, fc.integer({ min: 0, max: 32 }), fc.integer({ min: 0, max: 32 }), (one, other, bits, common) => {
      // Two addresses that share their first bits, or it would hardly ever be a member.
      const share = (value: number) => Math.floor(value / 2 ** (32 - common))
      const mixed = share(word(one)) * 2 ** (32 - common) + (word(other) % 2 ** (32 - common))
      const address = [24, 16, 8, 0].map(shift => Math.floor(mixed / 2 ** shift) % 256).join('.')
      const isIn = network(`${one.join('.')}/${bits}`)
      const expected = Math.floor(word(one) / 2 ** (32 - bits)) === Math.floor(mixed / 2 ** (32 - bits))
      return isIn(address) === expected && isIn(`::ffff:${address}`) === expected
    }),
  )
  t.ok(network('fe80::/10')('fe80::1%eth0'))
  t.notOk(network('::/0')('unix'))
  for (const wrong of [
    '',
    '192.0.2',
    '192.0.2.0/33',
    '192.0.2.0/',
    '::/129',
    '192.0.2.0/24/8',
    'example.net',
    'fe80::1%eth0/64',
    '1.2.3.4/-1',
  ])
    t.notOk(isAddressOrNetwork(wrong), wrong)
})

t.test('in a pattern only * and ? are wild', async t => {
  fc.assert(fc.property(fc.string(), text => glob(text.replaceAll(/[*?]/g, 'x')).test(text.replaceAll(/[*?]/g, 'x'))))
  fc.assert(
    fc.property(fc.string(), fc.string(), (a, b) =>
      glob(`${a.replaceAll(/[*?]/g, '')}*`).test(`${a.replaceAll(/[*?]/g, '')}${b}`),
    ),
  )
  t.notOk(glob('a.c').test('abc'))
  t.notOk(glob('[a-z]').test('b'))
  t.notOk(glob('a?').test('a'))
  t.notOk(glob('a').test('a\n'))
})
