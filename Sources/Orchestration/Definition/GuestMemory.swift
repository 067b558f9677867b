import CLinux
import ControlProtocol
import Foundation
import Glibc
import Platform
import Replication

/// The RAM of a QEMU that waits for its guest: all its blocks, and the memory files behind those that it shares with us.
///
/// A guest with NUMA cells or memory devices has a file each, all of one name, so which file is which block's cannot be read off the
/// descriptors. QEMU is asked where a guest-physical address of each block lies in its own memory, and the kernel which file is mapped there.
final class GuestMemory {
    struct File {
        let block: SharedBlock
        let fd: Int32
    }

    /// What `/proc/PID/fd` calls QEMU's RAM files.
    static let fileName = "/memfd:memory-backend-memfd"

    let files: [File]
    let blocks: [WaitingBlock]

    private init(files: [File], blocks: [WaitingBlock]) {
        self.files = files
        self.blocks = blocks
    }

    deinit { files.forEach { close($0.fd) } }

    /// - Parameter isPreallocated: the domain's XML has all memory set aside at its start.
    init(of domain: LocalDomain, pid: pid_t, isPreallocated: Bool) throws {
        let handle = try domain.handle()
        let blocks = MonitorText.blocks(try handle.monitorHuman("info ramblock"))
        self.blocks = blocks.map { WaitingBlock(name: $0.name, byteCount: $0.usedBytes, mostBytes: $0.totalBytes) }
        let memfds = try Memfd.all(pid)
        guard !memfds.isEmpty else { throw ControlFailure("The shadow of \(domain.name) has no shared memory file (memory-backend-memfd)") }
        let mappings = ProcessMapping.all(try kernelText("/proc/\(pid)/maps"))
        let sizes = Set(memfds.map(\.byteCount))
        var seen = Set<String>()
        var found: [UInt64: String] = [:]
        for range in MonitorText.ranges(try handle.monitorHuman("info mtree -f")) {
            guard let block = blocks.first(where: { $0.name == range.block }), sizes.contains(block.usedBytes), seen.insert(block.name).inserted,
                  let address = MonitorText.hostAddress(try handle.monitorHuman("gpa2hva 0x\(String(range.address, radix: 16))"), of: block.name),
                  let mapping = mappings.first(where: { $0.addresses.contains(address) }),
                  // The mapping starts where the block does, or it is not the block's.
                  address - mapping.addresses.lowerBound + mapping.offset == range.offset,
                  memfds.contains(where: { $0.inode == mapping.inode && $0.byteCount == block.usedBytes }) else { continue }
            guard found.updateValue(block.name, forKey: mapping.inode) == nil else {
                throw ControlFailure("Two RAM blocks of the shadow of \(domain.name) seem to lie in one memory file")
            }
        }
        files = try Self.open(memfds, found, domain: domain.name, isPreallocated: isPreallocated)
    }

    private static func open(_ memfds: [Memfd], _ blocks: [UInt64: String], domain: String, isPreallocated: Bool) throws -> [File] {
        var files: [File] = []
        do {
            for memfd in memfds {
                guard let name = blocks[memfd.inode] else {
                    throw ControlFailure("A memory file of the shadow of \(domain) (\(memfd.byteCount) bytes) belongs to no RAM block that QEMU tells of")
                }
                let fd = Glibc.open(memfd.path, O_RDWR | O_CLOEXEC)
                guard fd >= 0 else { throw SystemError("open", memfd.path) }
                files.append(File(block: SharedBlock(name: name, byteCount: memfd.byteCount, isPreallocated: isPreallocated || memfd.isHuge), fd: fd))
            }
        } catch {
            files.forEach { close($0.fd) }
            throw error
        }
        return files
    }
}

/// A memory file among the descriptors of a process.
private struct Memfd {
    /// Below /proc/PID/fd, where it can be opened.
    var path: String
    var inode: UInt64
    var byteCount: UInt64
    var isHuge: Bool

    /// linux/magic.h, `HUGETLBFS_MAGIC`.
    private static let hugeFileSystem: Int64 = 0x9584_58f6

    /// QEMU's RAM files, one entry each.
    static func all(_ pid: pid_t) throws -> [Memfd] {
        var seen = Set<UInt64>()
        return try openDescriptors(of: pid).filter { $0.target.hasPrefix(GuestMemory.fileName) }.compactMap { number, _ in
            let path = "/proc/\(pid)/fd/\(number)"
            var info = stat()
            guard stat(path, &info) == 0 else { throw SystemError("stat", path) }
            guard seen.insert(UInt64(info.st_ino)).inserted else { return nil }
            return Memfd(path: path, inode: UInt64(info.st_ino), byteCount: UInt64(info.st_size), isHuge: clinux_file_system_type(path) == hugeFileSystem)
        }
    }
}
