// The node contract: what every image (driver) and every layer over one (filter) can do, and how one is opened.
//
// The graph calls nodes, and nobody else does. Before a node is called the graph has checked range, alignment and permission
// (block/edge.ts), so a node never does: `offset >= 0`, `length > 0`, `offset + length <= size`, both multiples of `alignment`
// but for a last piece that ends at `size`.

import type { z } from 'zod'
import type { Range } from '../base/ranges.ts'
import type { RegionsTerms } from './writable-regions.ts'
import type { SharedMarks } from '../bitmaps/shared-marks.ts'
import type { BitmapStore } from '../bitmaps/bitmap-store.ts'
import type { SharedClusterMapTerms } from './shared-cluster-map.ts'
import type { DebugEvent } from './debug-event.ts'
import type { NodeInfo, SnapshotInfo } from './node-info.ts'
import type { PermissionChange, Permissions } from './permissions.ts'

/** What reading a range finds, in the terms of NBD's base:allocation. */
export interface Extent extends Range {
  /** Space is set aside for it: not a hole. */
  readonly allocated: boolean
  /** It reads as zeroes. `false` means "not known to". */
  readonly zero: boolean
  /** Which layer of the backing chain decides it: 1 this node's own (the default), 2 the image behind it, ...; 0 none of them. */
  readonly depth?: number
  /**
   * Where its bytes stand in the file below (of a file: in itself), where they stand there as they are; perhaps in a hole, and then they
   * are zeroes.
   */
  readonly hostOffset?: number
}

export interface WriteFlags {
  /** Durable before it is done (NBD's FUA). */
  readonly fua?: boolean
  /** For the node that is called, and no other: the disk reads the same as before, so that none of its bitmaps need know. */
  readonly unchanged?: boolean
  /** Takes less space, where the format can do that; whole clusters, or the last one up to the end. Elsewhere it means nothing. */
  readonly compressed?: boolean
}

export interface ZeroFlags extends WriteFlags {
  /** May become a hole. Without it the range stays allocated (NBD's NO_HOLE). */
  readonly unmap?: boolean
  /** Rather fail with NotSupported at once than be as slow as writing zeroes (NBD's FAST_ZERO). */
  readonly fast?: boolean
}

/** A read that is done at once, or not begun. */
export interface ReadyRead {
  readonly offset: number
  readonly bytes: Buffer
  /** Set when `bytes` are filled. */
  ready: boolean
}

/**
 * Where the bytes of a disk stand as they are, lent to a thread that reads and writes them there by itself. It does with each write what the nodes in
 * between would have done.
 */
export interface LentFile {
  readonly fd: number
  /** The disk's first byte in the file, or in what `through` maps. */
  readonly start: number
  /** Where the file does not hold the disk as it is, but in clusters: what is not in the map is not for the thread. */
  readonly through?: Through
  /** Where each write is to be marked, before and, where the epoch has moved, behind it; the disk's first byte is at `start` there. */
  readonly marks: readonly { readonly shared: SharedMarks; readonly start: number }[]
  /** Where all that a write touches must be; what is not there is not written. */
  readonly regions: readonly LentRegions[]
  /** It is only read. */
  readonly readOnly?: boolean
  /** Nobody uses it any more. */
  end(): void
}

/** Regions in which a thread may write, and how there come to be more of them. */
export interface LentRegions {
  readonly terms: RegionsTerms
  /** The disk's first byte there. */
  readonly start: number
  /**
   * Does what a write of a range there would do first, so that it is there when it returns; where it is not, or this fails, the write is for who
   * lent it. Begun only while it is lent, and may go on longer.
   */
  prepare(this: void, range: Range): Promise<void>
}

export interface Through {
  readonly map: SharedClusterMapTerms
  /** What the map calls 0, in the file. */
  readonly start: number
  /** Behind so many bytes from there on the thread touches nothing. */
  readonly size: number
  /** As those of LentFile, of what is below the map. */
  readonly marks: LentFile['marks']
}

/** Where a range stands in a file as it is, for a thread that reads it there by itself, through the page cache. In use until it is disposed of. */
export interface ReadPlace extends Disposable {
  readonly fd: number
  /** Of the range's first byte, in the file. */
  readonly at: number
  /** Asked when it was read: whether that is what `read` would have filled in. If not, it is to be read so. */
  isGood(): boolean
}

/** Who reads and writes by himself. */
export interface Borrower {
  /** To give back what he was lent, soon. He may be asked more than once. */
  revoke(): void
  /** Where the furthest of his writes has ended; 0: there was none. */
  highestWrite(): number
  /** The same in what is below the map, where there is one. */
  highestBelow?(): number
}

/** The requests. Every method may be called many times at once; requests that overlap may land in any order. */
export interface BlockIo {
  /** Bytes; a multiple of nothing. */
  readonly size: number
  /** Fills `into` from `offset`. On failure `into` holds anything. */
  read(offset: number, into: Buffer): Promise<void>
  /**
   * Fills those of which all can be had without waiting for anything; the others, and those that fail, are for `read`. Missing where
   * there is always something to wait for. They are small: who calls it wants them all before it goes on.
   */
  readReady?(reads: readonly ReadyRead[]): void
  /** Undefined where there is more to a read than to read from one file. */
  readPlace?(range: Range): ReadPlace | undefined
  /**
   * For as long as nothing but reads and writes of a file is to be done for a read or a write; undefined where there is more to it. Counts as a
   * write under way until it has ended, which a drain asks for and waits for, even where it is only read.
   */
  lend?(borrower: Borrower): LentFile | undefined
  write(offset: number, data: Buffer, flags?: WriteFlags): Promise<void>
  /** Makes the range read as zeroes. */
  zero(range: Range, flags?: ZeroFlags): Promise<void>
  /** The range's content is no longer needed; what it reads afterwards is anything. */
  discard(range: Range): Promise<void>
  /** Everything that was answered before this call is durable when it returns. */
  flush(): Promise<void>
  /** Covers the range from its start to its end, in order, without gaps; neighbours may be alike. */
  extents(range: Range): AsyncIterable<Extent>
  /** Makes the disk longer, by zeroes, or cuts it short. Throws NotSupported where the size is fixed. Nothing else is in flight meanwhile. */
  resize(size: number): Promise<void>
  /** The frozen instant behind this node, where it keeps one (copy-before-write does). */
  readonly snapshot?: Snapshot | undefined
  /** What whoever is above is about to do, for a layer that fails it on purpose (blkdebug). */
  announce?(event: DebugEvent): void
}

/** A view that does not move while the node that offers it is written. */
export interface Snapshot {
  read(offset: number, into: Buffer): Promise<void>
  readPlace?(range: Range): ReadPlace | undefined
  extents(range: Range): AsyncIterable<Extent>
  /** The reader is done with a range: what was kept for it may be given back. */
  discard(range: Range): Promise<void>
}

export interface BlockNode extends BlockIo, AsyncDisposable {
  /** Requests must be multiples of this many bytes, a power of two. The graph widens those that are not. Default 1. */
  readonly alignment?: number
  /** The longest read or write it takes, in bytes; the graph cuts longer ones. Default: no limit. */
  readonly maxTransfer?: number
  /** Let go of requests that are held back on purpose (throttle, delay) until `drainEnd`: somebody waits for all of them. */
  drainBegin?(): void
  drainEnd?(): void
  /** What it is made of, for `query-named-block-nodes` and people: a file name, an address. */
  readonly filename?: string
  /** Bytes of its clusters, where it has some: new dirty bitmaps are as fine as they are. */
  readonly clusterSize?: number
  /**
   * What all who use it need and allow from now on, for nodes that keep other processes to that too (locks on files). Called before it
   * becomes true; of several changes that are prepared each holds until it is committed or aborted. @throws Fault when others are in the way
   */
  preparePermissions?(permissions: Permissions): PermissionChange
  /** Where its dirty bitmaps are kept while it is closed; undefined where they are not. */
  readonly bitmapStore?: BitmapStore | undefined
  /** From now on another image is behind it, or none. Requests under way may have seen either. */
  setBacking?(backing: BlockIo | undefined): void
  /**
   * Another node is about to be opened over the same children in the place of this one; no write is under way. All is in the file when it
   * returns, and from then on this node only reads, until it is disposed of or the result is called: it stays, after all.
   */
  handOver?(): Promise<() => void>
  /** The same in another way, for nodes that have no children: what it is open with is changed, and the requests go on. */
  reopen?(context: Pick<OpenContext, 'readOnly' | 'unmap' | 'cache'>): Promise<Reopened>
  /** Writes the name of the image behind it into its header, durably; undefined: none. */
  changeBackingFile?(filename: string | undefined, format: string | undefined): Promise<void>
  /** Where the format has them. */
  readonly snapshots?: InternalSnapshots
  /** What else is known of it. Where it has no such method, what is known of the file below (GraphNode.info). */
  info?(): Promise<NodeInfo>
}

/** Ready to be used in another way: `commit`, and then `closeOld` when what began before it has ended, or `undo` and `closeNew`. */
export interface Reopened {
  commit(): void
  closeOld(): Promise<void>
  undo(): void
  closeNew(): Promise<void>
}

/** Instants that an image keeps inside of itself. They are made and deleted while no write is in flight. */
export interface InternalSnapshots {
  /** Oldest first. */
  list(): Promise<readonly SnapshotInfo[]>
  /** With what the image does of its own accord: to make one or to delete one waits for that, and should not with writes held. */
  isHeldUp(): boolean
  /** Until it is not. */
  ready(): Promise<void>
  create(name: string, date: Date): Promise<SnapshotInfo>
  delete(id: string): Promise<void>
}

/** How a driver uses a node below it. */
export interface ChildRule {
  /** What it is to its parent: `filtered` shows the same data, `target` only takes writes of the parent's own. */
  readonly role: 'filtered' | 'data' | 'target' | 'backing'
  readonly optional?: boolean
  /** The bitmaps that are stored there are the parent's: the child does not load them for itself. */
  readonly keepsBitmaps?: boolean
  /** What the parent needs of the child, and lets others do with it, given what its own parents need and allow, and its options. */
  permissions(parents: Permissions, readOnly: boolean, options?: unknown): Permissions
}

/** What an opened node gets from the graph. */
export interface OpenContext {
  /** The node's name in the graph. */
  readonly nodeName: string
  readonly readOnly: boolean
  /** QMP's `discard`: "ignore" (the default) or "unmap". Without it no discard comes, and no zeroing that may unmap. */
  readonly unmap: boolean
  /** QMP's `cache.direct` and `cache.no-flush`. */
  readonly cache: { readonly direct: boolean; readonly noFlush: boolean }
  /** The nodes below, by the name of the option. They outlive this node. */
  readonly children: Readonly<Record<string, BlockIo>>
  /** What these are made of, where they are files. */
  readonly filenames: Readonly<Record<string, string | undefined>>
  /** A node below, by the name of the option. */
  readonly below: (child: string) => NodeView
  /** Any node, by its name. */
  readonly find: (nodeName: string) => NodeView | undefined
  /** What `object-add` made, by id: throttle groups, quotas. */
  readonly object: (id: string) => unknown
  /** The same, of what is needed only while it is being opened: passwords. */
  readonly lookUp: (id: string) => unknown
  /** The same dirty bitmap that QMP would find: by node and name. */
  readonly bitmap: (node: string, name: string) => BitmapReader
  /** Tell whoever watches the node something that no request is there to hear. */
  readonly report: (event: NodeEvent) => void
}

/** What a driver may know of another node beside its bytes. */
export interface NodeView {
  readonly name: string
  readonly driver: Pick<AnyDriver, 'name' | 'compresses'>
  readonly readOnly: boolean
  readonly isFilter: boolean
  readonly clusterSize: number | undefined
  /** The images that show through it, from the top down; filters are left out. */
  readonly images: readonly NodeView[]
}

export type NodeEvent =
  | { readonly type: 'snapshot-broken'; readonly error: Error }
  /** QMP's BLOCK_IMAGE_CORRUPTED: the image contradicts itself; `fatal` says that it takes no more writes. */
  | { readonly type: 'image-corrupted'; readonly error: Error; readonly fatal: boolean }
  /** What is stored of its bitmaps is damaged, or may be of no use after a crash. */
  | { readonly type: 'bitmaps-at-risk'; readonly error: Error }
  /** It was taken away, and is closed when the disk below has answered; or that has failed since. */
  | { readonly type: 'closes-late'; readonly error: Error }

/** As much of a dirty bitmap as a driver may see. */
export interface BitmapReader {
  /** Calls back for each maximal dirty range within `range`, in order. */
  dirtyRanges(range: Range): Iterable<Range>
}

/** How a new image of a format, or a new file, is made (QMP's BlockdevCreateOptions). */
export interface ImageCreation<Options = never> {
  readonly options: z.ZodType<Options>
  /** The options that name a node to write to. What is there is lost. */
  readonly files: Readonly<Record<string, { readonly optional?: boolean }>>
  create(
    options: Options,
    files: Readonly<Record<string, BlockIo>>,
    filenames: Readonly<Record<string, string | undefined>>,
    lookUp: OpenContext['lookUp'],
  ): Promise<void>
}

export interface BlockDriver<Options = never> {
  /** QMP's name for it. */
  readonly name: string
  // oxlint-disable-next-line no-explicit-any -- the options are each driver's own
  readonly creation?: ImageCreation<any>
  /** Its own options, in QMP's words; those that every node has and the children are the graph's business. */
  readonly options: z.ZodType<Options>
  /** The options that name a node below, in the order they are opened. */
  readonly children: Readonly<Record<string, ChildRule>>
  /**
   * What the image itself says of the children that the options leave out (a qcow2's backing file), in the words of blockdev-add, or
   * the name of a node. Called with the children that are open already, before `open`. `null` in the options means: none, whatever the image says.
   */
  implicitChildren?(
    options: Options,
    context: Pick<OpenContext, 'nodeName' | 'children' | 'filenames'>,
  ): Promise<Readonly<Record<string, NodeOptions>>>
  /** It compresses what it is asked to, or hands that down. */
  readonly compresses?: boolean
  /** Its nodes can be opened anew while they are used (blockdev-reopen): what they know is in their files and options. */
  readonly reopens?: boolean
  open(options: Options, context: OpenContext): Promise<BlockNode>
}

/** The arguments of blockdev-add: `driver`, what every node has (QMP's BlockdevOptions), the driver's own, and its children. */
export interface NodeOptions {
  readonly driver: string
  readonly [option: string]: unknown
}

/** Any driver, for arrays of them. */
// oxlint-disable-next-line no-explicit-any -- the options are each driver's own
export type AnyDriver = BlockDriver<any>
