// libFuzzer target for the NBD server's handshake and requests; not part of `swift build`. Run it with Tests/Fuzz/run.sh nbd.
import Glibc
import NBDServer
import Platform

private final class FuzzExport: NBDExport, @unchecked Sendable {
    let name = "d", description = "fuzzed"
    let byteCount: UInt64 = 64 << 10
    let isReadOnly = false, allowsSeveralConnections = true, canRead = true, zeroesFast = true
    private let memory = UnsafeMutableRawPointer.allocate(byteCount: 64 << 10, alignment: 64)
    /// Exactly as long as the payload, for the address sanitizer.
    private var prepared: UnsafeMutableRawPointer?

    init() { memset(memory, 0, Int(byteCount)) }
    deinit {
        precondition(prepared == nil, "a buffer was not given back")
        memory.deallocate()
    }

    func prepareWrite(length: Int, connection: NBDConnectionID) throws(NBDError) -> UnsafeMutableRawPointer {
        precondition(prepared == nil)
        let place = UnsafeMutableRawPointer.allocate(byteCount: length, alignment: 16)
        prepared = place
        return place
    }
    func abandonWrite(connection: NBDConnectionID) {
        prepared!.deallocate()
        prepared = nil
    }
    func write(offset: UInt64, bytes: UnsafeRawBufferPointer, forceUnitAccess: Bool, connection: NBDConnectionID) throws(NBDError) {
        memcpy(memory + check(offset, UInt64(bytes.count)), bytes.baseAddress!, bytes.count)
        abandonWrite(connection: connection)
    }
    func read(offset: UInt64, into buffer: UnsafeMutableRawBufferPointer) throws(NBDError) {
        memcpy(buffer.baseAddress!, memory + check(offset, UInt64(buffer.count)), buffer.count)
    }
    func writeZeroes(offset: UInt64, length: UInt64, mayTrim: Bool, forceUnitAccess: Bool) throws(NBDError) {
        memset(memory + check(offset, length), 0, Int(length))
    }
    func trim(offset: UInt64, length: UInt64, forceUnitAccess: Bool) throws(NBDError) { _ = check(offset, length) }
    func flush() throws(NBDError) {}
    func blockStatus(offset: UInt64, length: UInt64, firstOnly: Bool, _ extent: (UInt64, NBDExtentState) -> Void) throws(NBDError) {
        _ = check(offset, length)
        extent(min(length, 4096), [])
        if length > 4096, !firstOnly { extent(length, [.hole, .zero]) }
    }

    private func check(_ offset: UInt64, _ length: UInt64) -> Int {
        precondition(length > 0 && offset <= byteCount && length <= byteCount - offset)
        return Int(offset)
    }
}

/// To transmission, with structured replies and allocation, so that inputs of the second kind start with requests.
private let opening: [UInt8] = [0, 0, 0, 3]
    + Array("IHAVEOPT".utf8) + [0, 0, 0, 8, 0, 0, 0, 0]
    + Array("IHAVEOPT".utf8) + [0, 0, 0, 10, 0, 0, 0, 28, 0, 0, 0, 1, 0x64, 0, 0, 0, 1, 0, 0, 0, 15] + Array("base:allocation".utf8)
    + Array("IHAVEOPT".utf8) + [0, 0, 0, 7, 0, 0, 0, 7, 0, 0, 0, 1, 0x64, 0, 0]

@_cdecl("LLVMFuzzerTestOneInput")
public func fuzz(_ data: UnsafePointer<UInt8>, _ count: Int) -> Int32 {
    var ends: [Int32] = [-1, -1]
    guard count > 0, socketpair(AF_UNIX, Int32(SOCK_STREAM.rawValue), 0, &ends) == 0 else { return 0 }
    defer { close(ends[1]) }
    // Everything fits the socket's buffer (run.sh limits inputs to 64 KiB), so one thread is enough; replies that do not fit end it.
    var size: Int32 = 1 << 20
    for end in ends { setsockopt(end, SOL_SOCKET, Int32(SO_SNDBUF), &size, 4) }
    let flags = Int32(MSG_DONTWAIT) | Int32(MSG_NOSIGNAL)
    if data[0] & 1 == 1 { _ = opening.withUnsafeBytes { send(ends[1], $0.baseAddress, $0.count, flags) } }
    _ = send(ends[1], data + 1, count - 1, flags)
    shutdown(ends[1], Int32(SHUT_WR))
    var limits = NBDLimits()
    limits.transferSeconds = 0.001
    limits.handshakeSeconds = 0.05
    try? NBDServer.serve(Descriptor(owning: ends[0]), exports: [FuzzExport()], limits: limits)
    return 0
}
