import ControlProtocol
import XCTest
@testable import Orchestration

final class DiskPlanTests: XCTestCase {
    private func decide(_ disk: String, _ facts: DiskPlan.Facts?) throws -> DiskPlan.Decision {
        let definition = try Samples.definition(disk)
        let plan = DiskPlan(definition, facts: facts.map { [definition.disks[0].target: $0] } ?? [:])
        return try XCTUnwrap(plan.entries.first).decision
    }

    private func refusal(_ disk: String, _ facts: DiskPlan.Facts? = Samples.facts("/x")) throws -> String {
        guard case .refused(let reason, _) = try decide(disk, facts) else { return "not refused" }
        return reason
    }

    func testWritableDisksOfThisHostAreReplicated() throws {
        let cases: [(disk: String, facts: DiskPlan.Facts, pool: String?, volume: String)] = [
            (Samples.file("vda", "/images/web1.img"), Samples.facts("/images/web1.img", pool: "default", volume: "web1.img"), "default", "web1.img"),
            (Samples.file("sda", "/srv/web1.img", bus: "scsi"), Samples.facts("/srv/web1.img"), nil, "web1.img"),
            (Samples.file("hda", "/images/web1.qcow2", format: "qcow2", bus: "ide"), Samples.facts("/images/web1.qcow2"), nil, "web1.raw"),
            (Samples.file("hda", "/images/web1", format: "qcow2", bus: "usb"), Samples.facts("/images/web1"), nil, "web1.raw"),
            ("<disk type='block' device='disk'><driver type='raw'/><source dev='/dev/vg/root'/><target dev='sdb' bus='sata'/></disk>",
             Samples.facts("/dev/vg/root"), nil, "web1-sdb"),
            ("<disk type='block' device='disk'><driver type='raw'/><source dev='/dev/vg/root'/><target dev='sdb' bus='sata'/></disk>",
             Samples.facts("/dev/vg/root", pool: "vg", volume: "root"), "vg", "root"),
            ("<disk type='volume' device='disk'><driver type='qcow2'/><source pool='p' volume='v.qcow2'/><target dev='vdb' bus='virtio'/></disk>",
             Samples.facts("/p/v.qcow2", pool: "p", volume: "v.qcow2"), "p", "v.raw"),
        ]
        for (disk, facts, pool, volume) in cases {
            guard case .replicate(let request) = try decide(disk, facts) else { return XCTFail(disk) }
            XCTAssertEqual(request.pool, pool, disk)
            XCTAssertEqual(request.volume, volume, disk)
            XCTAssertEqual(request.sourcePath, facts.path, disk)
            XCTAssertEqual(request.capacityBytes, 1 << 30, disk)
            XCTAssertEqual(request.allocationBytes, 1 << 28, disk)
        }
    }

    func testWhatTheGuestOnlyReadsMustExist() throws {
        let readOnly = Samples.file("vdb", "/images/base.img", more: "<readonly/>")
        XCTAssertEqual(try decide(readOnly, Samples.facts("/images/base.img")), .mustExist(path: "/images/base.img", isRemovable: false))
        let cdrom = Samples.file("hdc", "/iso/x.iso", device: "cdrom", more: "<readonly/>")
        XCTAssertEqual(try decide(cdrom, Samples.facts("/iso/x.iso")), .mustExist(path: "/iso/x.iso", isRemovable: true))
        let floppy = Samples.file("fda", "/iso/f.img", bus: "fdc", device: "floppy")
        XCTAssertEqual(try decide(floppy, Samples.facts("/iso/f.img")), .mustExist(path: "/iso/f.img", isRemovable: true))
        XCTAssertEqual(try decide("<disk type='file' device='cdrom'><target dev='hdc' bus='ide'/><readonly/></disk>", nil), .empty)
        XCTAssertEqual(try decide("<disk type='file' device='cdrom'><source startupPolicy='optional'/><target dev='hdc' bus='ide'/></disk>", nil), .empty)
        let web = "<disk type='network' device='cdrom'><source protocol='https' name='x.iso'><host name='h'/></source><target dev='hdc' bus='sata'/></disk>"
        XCTAssertEqual(try decide(web, nil), .reachable("https"))
        // Read-only or not, a drive's medium is not asked whether its format could be replicated.
        let plan = DiskPlan(try Samples.definition(floppy), facts: ["fda": Samples.facts("/iso/f.img")])
        XCTAssertEqual(plan.findings(domain: "web1", onFailure: .leave).map(\.verdict), [.warning, .ok])
    }

    func testSharedStorage() throws {
        let shareable = Samples.file("vdb", "/images/quorum.img", more: "<shareable/>")
        XCTAssertEqual(try decide(shareable, Samples.facts("/images/quorum.img")), .shared("<shareable/>", path: "/images/quorum.img"))
        let rbd = "<disk type='network' device='disk'><driver type='raw'/><source protocol='rbd' name='p/i'><host name='h'/></source><target dev='vda' bus='virtio'/></disk>"
        XCTAssertEqual(try decide(rbd, nil), .shared("rbd", path: nil))
        var facts = Samples.facts("/nfs/web1.img")
        facts.sharedBy = "NFS"
        let plan = DiskPlan(try Samples.definition(Samples.file("vda", "/nfs/web1.img")), facts: ["vda": facts])
        XCTAssertEqual(plan.entries[0].decision, .shared("NFS", path: "/nfs/web1.img"))
        XCTAssertEqual(plan.shared, ["vda"])
        XCTAssertEqual(plan.media, [MediaRequest(target: "vda", path: "/nfs/web1.img", kind: .shared)])
        XCTAssertTrue(plan.replicas.isEmpty)
        let none = plan.findings(domain: "web1", onFailure: .leave), restart = plan.findings(domain: "web1", onFailure: .restart)
        XCTAssertEqual(none.map(\.verdict), [.warning])
        XCTAssertTrue(none[0].detail.contains("a failover resumes nothing") && none[0].advice.contains("--on-failure restart"), none[0].detail)
        XCTAssertEqual(restart.map(\.verdict), [.warning])
        XCTAssertTrue(restart[0].detail.contains("boots cold"), restart[0].detail)
    }

    func testRefusals() throws {
        XCTAssertEqual(try refusal(Samples.file("sda", "/dev/sg1", device: "lun")), "Disk sda is passed through (device='lun')")
        for type in ["vhostuser", "nvme", "vhostvdpa", "later"] {
            let text = try refusal("<disk type='\(type)' device='disk'><source type='unix' path='/s'/><target dev='vda' bus='virtio'/></disk>")
            XCTAssertTrue(text.hasPrefix("Disk vda has type='\(type)'"), text)
        }
        XCTAssertEqual(try refusal("<disk type='dir' device='disk'><source dir='/x'/><target dev='vda' bus='virtio'/></disk>"), "Disk vda is a folder of its host")
        XCTAssertEqual(try refusal(Samples.file("vda", "/x", more: "<transient/>")), "Disk vda is <transient/>")
        XCTAssertEqual(try refusal(Samples.file("vda", "/x", more: "<encryption format='luks'/>")), "Disk vda is encrypted by QEMU")
        XCTAssertEqual(try refusal(Samples.file("vda", "/x", bus: "xen")), "Disk vda is on the xen bus")
        XCTAssertEqual(try refusal(Samples.file("vda", "/x", format: "vmdk")), "Disk vda has the format vmdk")
        XCTAssertEqual(try refusal(Samples.file("vda", "/x"), Samples.facts("/x", capacity: 0)), "The size of disk vda cannot be told")
        XCTAssertEqual(try refusal("<disk type='volume' device='disk'><source pool='p' volume='v'/><target dev='vda' bus='virtio'/></disk>", DiskPlan.Facts()),
                       "Where disk vda lies cannot be told")
        var busy = Samples.facts("/x")
        busy.hasForeignJob = true
        XCTAssertEqual(try refusal(Samples.file("vda", "/x"), busy), "Disk vda of domain web1 has a block job already")
        let plan = DiskPlan(try Samples.definition(Samples.file("vda", "/x", format: "vmdk")), facts: ["vda": Samples.facts("/x")])
        let findings = plan.findings(domain: "web1", onFailure: .leave)
        XCTAssertEqual(findings.map(\.verdict), [.failed])
        XCTAssertTrue(findings[0].advice.contains("qemu-img convert") && findings[0].advice.contains("--without-disks"))
    }

    func testFindingsOfSeveralDisks() throws {
        let definition = try Samples.definition(Samples.file("vda", "/a.img") + Samples.file("vdb", "/b.qcow2", format: "qcow2") + Samples.file("hdc", "/c.iso", device: "cdrom"))
        let plan = DiskPlan(definition, facts: ["vda": Samples.facts("/a.img"), "vdb": Samples.facts("/b.qcow2"), "hdc": Samples.facts("/c.iso")])
        XCTAssertEqual(plan.findings(domain: "web1", onFailure: .leave).map(\.detail), ["In the epochs: vda, vdb"])
        XCTAssertEqual(plan.replicas.map(\.volume), ["a.img", "b.raw"])
        XCTAssertEqual(plan.media, [MediaRequest(target: "hdc", path: "/c.iso", kind: .removable)])
        XCTAssertEqual(DiskPlan(try Samples.definition(""), facts: [:]).findings(domain: "web1", onFailure: .leave).map(\.detail), ["No writable disk"])
    }

    func testSizeChanges() throws {
        let plan = DiskPlan(try Samples.definition(Samples.file("vda", "/a") + Samples.file("vdb", "/b")),
                            facts: ["vda": Samples.facts("/a", capacity: 1 << 20), "vdb": Samples.facts("/b", capacity: 1 << 21)])
        XCTAssertEqual(plan.sizeChanges(["vda": 1 << 20, "vdb": 1 << 21]), [])
        XCTAssertEqual(plan.sizeChanges(["vda": 1 << 20, "vdb": 1 << 22]), [.init(target: "vdb", was: 1 << 21, now: 1 << 22)])
        // A disk that was detached is not one of another size.
        XCTAssertEqual(plan.sizeChanges(["vda": 1 << 20]), [])
    }

    func testMirrors() throws {
        let ours = "<mirror type='network' job='copy' ready='yes'><format type='raw'/><source protocol='nbd' name='vda'><host transport='unix' socket='/run/shadow-virt/u/nbd.sock'/></source></mirror>"
        let guardJob = "<mirror type='file' file='/var/lib/shadow-virt/u.guard' job='copy'><format type='raw'/><source file='/var/lib/shadow-virt/u.guard'/></mirror>"
        let definition = try Samples.definition(Samples.file("vda", "/a", more: ours) + Samples.file("vdb", "/b", more: guardJob) + Samples.file("vdc", "/c"))
        XCTAssertEqual(definition.disks.map(\.mirror), [.init(isReady: true, path: "/run/shadow-virt/u/nbd.sock"), .init(isReady: false, path: "/var/lib/shadow-virt/u.guard"), nil])
        XCTAssertEqual(DiskMirror.leftOvers(definition, folder: "/run/shadow-virt"), ["vda"])
        XCTAssertEqual(DiskMirror.leftOvers(definition, folder: "/run/shadow"), [])
    }
}
