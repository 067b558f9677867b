/// A client's connection, as its export sees it.
public struct NBDConnectionID: Hashable, Sendable {
    /// Below `NBDServer.maximumConnections`; no two connections that are open have the same, so arrays may be indexed with it.
    public let slot: Int
    /// Counts all connections of a server, from 1 on.
    public let serial: UInt64

    public init(slot: Int, serial: UInt64) {
        self.slot = slot
        self.serial = serial
    }
}

/// What a range holds, with the values of the protocol's context `base:allocation`. Empty: allocated data.
public struct NBDExtentState: OptionSet, Hashable, Sendable {
    public let rawValue: UInt32
    public init(rawValue: UInt32) { self.rawValue = rawValue }
    /// Nothing is allocated there.
    public static let hole = NBDExtentState(rawValue: 1)
    /// It reads as zeros.
    public static let zero = NBDExtentState(rawValue: 2)
}

/// A disk as clients see it. Its methods are called on the threads of its connections, for one connection in the order of its
/// requests; with one connection nothing happens at the same time. Ranges are checked before: they lie within `byteCount`, are not
/// empty and are multiples of the smallest block.
public protocol NBDExport: AnyObject, Sendable {
    /// What clients ask for, at most 4096 bytes.
    var name: String { get }
    /// For people who list the exports.
    var description: String { get }
    /// Constant as long as the server runs.
    var byteCount: UInt64 { get }
    var isReadOnly: Bool { get }
    /// What one connection has written and flushed is seen by all others (NBD_FLAG_CAN_MULTI_CONN). If not, one client at a time.
    var allowsSeveralConnections: Bool { get }
    /// If not, READ and BLOCK_STATUS are answered with ENOTSUP, and allocation is not offered.
    var canRead: Bool { get }
    /// Zeros always cost less than writing them would; if not, FAST_ZERO is answered with ENOTSUP.
    var zeroesFast: Bool { get }

    /// Memory for the payload of a write of `length` bytes, at most the server's `maximumPayload`. May block for back-pressure.
    /// A return is followed by exactly one `write` or `abandonWrite` on the same thread; the memory is the server's until then.
    func prepareWrite(length: Int, connection: NBDConnectionID) throws(NBDError) -> UnsafeMutableRawPointer
    /// Whether `prepareWrite` would return at once now. If not, earlier replies are sent before it is called: what it waits for may
    /// depend on them. If so, they may go out together with later ones.
    func takesWriteAtOnce(length: Int, connection: NBDConnectionID) -> Bool
    /// `bytes` is the prepared memory, filled. It is given back, also by an error.
    func write(offset: UInt64, bytes: UnsafeRawBufferPointer, forceUnitAccess: Bool, connection: NBDConnectionID) throws(NBDError)
    /// The client went away within the payload: the prepared memory is not written.
    func abandonWrite(connection: NBDConnectionID)

    func read(offset: UInt64, into buffer: UnsafeMutableRawBufferPointer) throws(NBDError)
    /// `mayTrim`: the range may become a hole.
    func writeZeroes(offset: UInt64, length: UInt64, mayTrim: Bool, forceUnitAccess: Bool) throws(NBDError)
    /// The client has no use for the range any more; to do nothing is right, too.
    func trim(offset: UInt64, length: UInt64, forceUnitAccess: Bool) throws(NBDError)
    /// Writes that were answered before are on stable storage when it returns.
    func flush() throws(NBDError)
    /// Calls `extent` for consecutive extents from `offset` on until `length` is covered (the last may reach beyond), or for the
    /// first only.
    func blockStatus(offset: UInt64, length: UInt64, firstOnly: Bool, _ extent: (UInt64, NBDExtentState) -> Void) throws(NBDError)
}

extension NBDExport {
    public var zeroesFast: Bool { false }
    public func takesWriteAtOnce(length: Int, connection: NBDConnectionID) -> Bool { false }
}
