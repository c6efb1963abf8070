// Who may use which exports, by rules: where a client comes from, whom its certificate names, whose key it has.
//
// A rule names conditions, all of which must hold, and the exports it opens. What no rule opens is neither listed nor served; what is opened
// by rules that are read-only alone is offered read-only.

import { glob } from '../base/glob.ts'
import { network } from '../base/networks.ts'
import type { TlsCredentials, TlsIdentity } from '../base/tls-credentials.ts'
import type { Export } from './export.ts'
import type { TlsTerms } from './handshake.ts'
import type { Peer } from './link.ts'

export interface AccessRule {
  /** An address, or a network as 192.0.2.0/24. A unix socket has none. */
  readonly address?: string | undefined
  /** A pattern: with '=' in it for the distinguished name, with DNS: or another kind before it for the alternative names, else for the common name. */
  readonly certificate?: string | undefined
  /** A pattern for the user whose pre-shared key it is. */
  readonly user?: string | undefined
  /** Patterns for the names of exports; default: all. */
  readonly exports?: readonly string[] | undefined
  /** They may be read, and not written. */
  readonly readOnly?: boolean | undefined
}

/** Whether a client may see and use an export at all, and if so, whether it may write to one that is writable. */
export type Access = boolean | 'read-only'

type Condition = (peer: Peer) => boolean

/** What NbdServerOptions.authorize wants. @throws InvalidParameter for an address that is none */
export function accessBy(rules: readonly AccessRule[]): (peer: Peer, wanted: Pick<Export, 'name'>) => Access {
  const compiled = rules.map(rule => {
    const conditions = conditionsOf(rule)
    const exports = (rule.exports ?? ['*']).map(glob)
    const opens = (peer: Peer, name: string) =>
      exports.some(pattern => pattern.test(name)) && conditions.every(condition => condition(peer))
    return { opens, readOnly: rule.readOnly === true }
  })
  return (peer, { name }) => {
    const open = compiled.filter(({ opens }) => opens(peer, name))
    return open.length > 0 && (open.some(({ readOnly }) => !readOnly) || 'read-only')
  }
}

function conditionsOf({ address, certificate, user }: AccessRule): Condition[] {
  const conditions: Condition[] = []
  if (address !== undefined) {
    const isIn = network(address)
    conditions.push(({ host }) => host !== undefined && isIn(host))
  }
  if (certificate !== undefined) {
    const pattern = glob(certificate)
    conditions.push(
      ({ tls }) => tls?.certificate !== undefined && namesOf(tls.certificate, certificate).some(one => pattern.test(one)),
    )
  }
  if (user !== undefined) {
    const pattern = glob(user)
    conditions.push(({ tls }) => tls?.user !== undefined && pattern.test(tls.user))
  }
  return conditions
}

function namesOf({ subject, commonName, alternativeNames }: NonNullable<TlsIdentity['certificate']>, pattern: string) {
  if (pattern.includes('=')) return [subject]
  return /^(DNS|IP Address|URI|email):/.test(pattern) ? alternativeNames.split(', ') : [commonName]
}

/** TLS for everything, but for the exports of these names, which may be used without it too. */
export function tlsTerms(credentials: TlsCredentials, inTheClear: readonly string[] | undefined): TlsTerms {
  if (!inTheClear) return { mode: 'forced', credentials }
  const patterns = inTheClear.map(glob)
  return { mode: 'selective', credentials, inTheClear: ({ name }) => patterns.some(pattern => pattern.test(name)) }
}
