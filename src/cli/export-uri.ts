// The addresses of exports, ready to paste (the NBD project's doc/uri.md).

import type { Listener, SessionInfo } from './replies.ts'

/** Everything that means something in a URI or to a shell; slashes stay, for people. */
const escape = (text: string) =>
  encodeURIComponent(text)
    .replaceAll(/[!'()*]/g, character => `%${character.charCodeAt(0).toString(16).toUpperCase()}`)
    .replaceAll('%2F', '/')

/** The wildcard address is no place to connect to; on this machine, this is. */
const reachable: Record<string, string> = { '0.0.0.0': '127.0.0.1', '::': '::1' }

export function exportUri(listener: Listener, exportName: string): string {
  if (listener.type === 'unix') return `nbd+unix:///${escape(exportName)}?socket=${escape(listener.path)}`
  const host = reachable[listener.host] ?? listener.host
  const port = listener.port === 10809 ? '' : `:${listener.port}`
  return `${listener.tls ? 'nbds' : 'nbd'}://${host.includes(':') ? `[${host}]` : host}${port}/${escape(exportName)}`
}

/** Where an export of a session is found: at the session's own socket, or wherever the daemon listens, unix sockets first. */
export function sessionUris({ socket }: Pick<SessionInfo, 'socket'>, exportName: string, nbd: readonly Listener[]): string[] {
  const listeners: readonly Listener[] = socket === undefined ? nbd : [{ type: 'unix', path: socket }]
  return listeners
    .toSorted((a, b) => Number(b.type === 'unix') - Number(a.type === 'unix'))
    .map(listener => exportUri(listener, exportName))
}
