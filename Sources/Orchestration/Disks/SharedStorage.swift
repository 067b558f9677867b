import CLinux
import Foundation
import Glibc
import Platform

/// Whether a path lies on storage that other hosts may write to at the same time. What is doubtful counts as shared: a replica of a disk
/// that both hosts have would be written over the disk itself.
enum SharedStorage {
    /// What it is shared by, for a person; nil when it is this host's own.
    static func name(of path: String) -> String? {
        var info = stat()
        guard stat(path, &info) == 0 else {
            let folder = (path as NSString).deletingLastPathComponent
            return folder == path || folder.isEmpty ? nil : name(of: folder)
        }
        if info.st_mode & S_IFMT == S_IFBLK { return blockDevice(info.st_rdev, system: "/sys") }
        guard let magic = UInt32(exactly: clinux_file_system_type(path)) else { return nil }
        return fileSystem(magic: magic) { mountType(info.st_dev) }
    }

    /// By `f_type` of statfs(2); `mountType` is asked for those that live in user space, which have one number in common.
    static func fileSystem(magic: UInt32, mountType: () -> String?) -> String? {
        if magic == fuse { return mountType().flatMap { sharedInUserSpace[$0] } }
        return sharedMagics[magic]
    }

    /// linux/magic.h and the file systems' own sources.
    private static let sharedMagics: [UInt32: String] = [
        0x6969: "NFS", 0xFF53_4D42: "CIFS", 0xFE53_4D42: "SMB", 0x517B: "SMB", 0x0116_1970: "GFS2", 0x7461_636F: "OCFS2", 0x00C3_6400: "CephFS",
        0x4750_4653: "GPFS", 0x0BD0_0BD0: "Lustre", 0x5346_414F: "AFS", 0x1983_0326: "BeeGFS", 0x5162_6D6E: "Quobyte", 0x6163_6673: "ACFS",
        0x0102_1997: "9p",
    ]
    private static let fuse: UInt32 = 0x6573_5546
    private static let sharedInUserSpace: [String: String] = [
        "fuse.glusterfs": "GlusterFS", "fuse.ceph": "CephFS", "fuse.ceph-fuse": "CephFS", "fuse.sshfs": "SSHFS", "fuse.mfs": "MooseFS",
        "fuse.moosefs": "MooseFS", "fuse.lizardfs": "LizardFS", "fuse.juicefs": "JuiceFS", "fuse.quobyte": "Quobyte", "fuse.seaweedfs": "SeaweedFS",
        "virtiofs": "virtiofs",
    ]

    private static func mountType(_ device: dev_t) -> String? {
        (try? kernelFile("/proc/self/mountinfo")).flatMap { mountType($0, major: major(device), minor: minor(device)) }
    }

    /// proc_pid_mountinfo(5): "36 35 98:0 / /mnt rw,noatime master:1 - ext3 /dev/root rw": the third word is the device, the one after
    /// the hyphen the type.
    static func mountType(_ mountinfo: String, major: UInt32, minor: UInt32) -> String? {
        for line in mountinfo.split(separator: "\n") {
            let words = line.split(separator: " ")
            guard words.count > 6, words[2] == "\(major):\(minor)", let hyphen = words.dropFirst(6).firstIndex(of: "-"), hyphen + 1 < words.count else { continue }
            return String(words[hyphen + 1])
        }
        return nil
    }

    /// By the device's place in the kernel's tree; what is stacked on others (LVM, multipath) is what these are.
    static func blockDevice(_ device: dev_t, system: String) -> String? {
        blockDevice(folder: "\(system)/dev/block/\(major(device)):\(minor(device))", depth: 0)
    }

    private static func blockDevice(folder: String, depth: Int) -> String? {
        // Deeper stacks than this are none.
        guard depth < 8, let buffer = realpath(folder, nil) else { return nil }
        let place = String(cString: buffer)
        free(buffer)
        for component in place.split(separator: "/") {
            for (prefix, name) in components where component.hasPrefix(prefix) { return name }
        }
        let below = (try? FileManager.default.contentsOfDirectory(atPath: "\(place)/slaves")) ?? []
        for name in below.sorted() {
            if let found = blockDevice(folder: "\(place)/slaves/\(name)", depth: depth + 1) { return found }
        }
        return nil
    }

    private static let components: [(prefix: String, name: String)] = [
        ("session", "iSCSI"), ("rport-", "Fibre Channel"), ("nvme-fabrics", "NVMe over fabrics"), ("rbd", "Ceph RBD"), ("drbd", "DRBD"), ("nbd", "NBD"),
    ]

    // gnu_dev_major and gnu_dev_minor, which are macros.
    private static func major(_ device: dev_t) -> UInt32 { UInt32((device >> 8) & 0xFFF) | UInt32(truncatingIfNeeded: (device >> 32) & ~0xFFF) }
    private static func minor(_ device: dev_t) -> UInt32 { UInt32(device & 0xFF) | UInt32(truncatingIfNeeded: (device >> 12) & ~0xFF) }
}
