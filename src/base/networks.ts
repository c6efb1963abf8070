// Addresses and networks as people write them: 192.0.2.7, 192.0.2.0/24, 2001:db8::/32.

import { BlockList, isIP, isIPv6 } from 'node:net'
import { InvalidParameter } from './errors.ts'

const family = (address: string) => (isIPv6(address) ? 'ipv6' : 'ipv4')

function partsOf(text: string) {
  const [, address = '', bits] = /^([^/]*)(?:\/(\d{1,3}))?$/.exec(text) ?? []
  const most = isIPv6(address) ? 128 : 32
  const prefix = bits === undefined ? most : Number(bits)
  return isIP(address) > 0 && !address.includes('%') && prefix <= most ? { address, prefix } : undefined
}

export const isAddressOrNetwork = (text: string) => partsOf(text) !== undefined

/** Says of an address whether it is in there. @throws InvalidParameter */
export function network(text: string): (address: string) => boolean {
  const parts = partsOf(text)
  if (!parts)
    throw new InvalidParameter(`'${text}' is no address and no network, such as 192.0.2.7, 192.0.2.0/24 or 2001:db8::/32`)
  const list = new BlockList()
  list.addSubnet(parts.address, parts.prefix, family(parts.address))
  // An IPv4 client of a socket for both has an address of IPv6 with its own in it, which the list understands.
  return given => {
    const address = given.split('%')[0]! // without the interface that a link-local one is of
    return isIP(address) > 0 && list.check(address, family(address))
  }
}
