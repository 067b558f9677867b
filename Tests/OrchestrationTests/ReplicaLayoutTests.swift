import Foundation
import FoundationXML
import XCTest
@testable import Orchestration

final class ReplicaLayoutTests: XCTestCase {
    /// The disks of an XML, one string each, with attributes in alphabetical order: their order in the text says nothing.
    private func disks(_ xml: String) throws -> [String] {
        let root = try XCTUnwrap(XMLDocument(xmlString: xml).rootElement())
        return try root.nodes(forXPath: "devices/disk").compactMap { ($0 as? XMLElement).map(text) }
    }

    private func text(_ element: XMLElement) -> String {
        let attributes = (element.attributes ?? []).map { " \($0.name ?? "")=\($0.stringValue ?? "")" }.sorted().joined()
        let children = (element.children ?? []).compactMap { ($0 as? XMLElement).map(text) }.sorted().joined()
        return "<\(element.name ?? "")\(attributes)>\(children)"
    }

    func testAFileBecomesTheReplica() throws {
        let disk = """
            <disk type='file' device='disk' snapshot='external'><driver name='qemu' type='qcow2' cache='none' io='native' discard='unmap' copy_on_read='on' discard_no_unref='on' iothread='1'>
            <metadata_cache><max_size unit='bytes'>1</max_size></metadata_cache></driver>
            <source file='/images/web1.qcow2' index='3'><seclabel model='dac' relabel='no'/></source>
            <backingStore type='file'><format type='qcow2'/><source file='/images/base.qcow2'/></backingStore>
            <mirror type='file' job='copy'><source file='/x'/></mirror><target dev='vda' bus='virtio'/><serial>S1</serial><boot order='1'/><alias name='virtio-disk0'/></disk>
            """
        let layout = ReplicaLayout(replicas: ["vda": "/pool/web1 & co.raw"])
        for xml in [try layout.rewrite(Samples.domain(disk)), try Samples.definition(disk).shadowXML(layout), try Samples.definition(disk).persistentXML(layout)] {
            XCTAssertEqual(try disks(xml), [
                "<disk device=disk snapshot=external type=file><alias name=virtio-disk0><boot order=1><driver cache=none discard=unmap io=native iothread=1 name=qemu type=raw>"
                    + "<serial><source file=/pool/web1 & co.raw><target bus=virtio dev=vda>",
            ])
        }
    }

    func testDevicesBothWays() throws {
        let block = "<disk type='block' device='disk'><driver name='qemu' type='raw'/><source dev='/dev/vg/a'/><target dev='sda' bus='scsi'/></disk>"
        XCTAssertEqual(try disks(ReplicaLayout(replicas: ["sda": "/pool/a.img"]).rewrite(Samples.domain(block))),
                       ["<disk device=disk type=file><driver name=qemu type=raw><source file=/pool/a.img><target bus=scsi dev=sda>"])
        let file = Samples.file("vda", "/a.img")
        XCTAssertEqual(try disks(ReplicaLayout(replicas: ["vda": "/dev/vg/a"], visibleBytes: ["vda": 1000]).rewrite(Samples.domain(file))),
                       ["<disk device=disk type=block><driver name=qemu type=raw><source dev=/dev/vg/a><slices><slice offset=0 size=1000 type=storage><target bus=virtio dev=vda>"])
        XCTAssertFalse(ReplicaLayout.isDevice("/dev/shm/a.img"))
        let volume = "<disk type='volume' device='disk'><source pool='p' volume='v'/><target dev='vda' bus='virtio'/></disk>"
        XCTAssertEqual(try disks(ReplicaLayout(replicas: ["vda": "/p/v"]).rewrite(Samples.domain(volume))),
                       ["<disk device=disk type=file><driver type=raw><source file=/p/v><target bus=virtio dev=vda>"])
    }

    func testDrivesWithoutTheirMedium() throws {
        let xml = Samples.domain(Samples.file("hda", "/a.iso", bus: "ide", device: "cdrom", more: "<backingStore/><readonly/>")
            + "<disk type='block' device='cdrom'><source dev='/dev/sr0'/><target dev='hdb' bus='ide'/></disk>" + Samples.file("hdc", "/c.iso", bus: "ide", device: "cdrom"))
        XCTAssertEqual(try disks(ReplicaLayout(emptied: ["hda", "hdb"]).rewrite(xml)), [
            "<disk device=cdrom type=file><driver name=qemu type=raw><readonly><target bus=ide dev=hda>",
            "<disk device=cdrom type=file><target bus=ide dev=hdb>",
            "<disk device=cdrom type=file><driver name=qemu type=raw><source file=/c.iso><target bus=ide dev=hdc>",
        ])
    }

    func testNothingToDoLeavesTheTextAlone() throws {
        let xml = Samples.domain(Samples.file("vda", "/a"))
        XCTAssertEqual(try ReplicaLayout().rewrite(xml), xml)
        XCTAssertEqual(try disks(Samples.definition(Samples.file("vda", "/a")).shadowXML()), try disks(xml))
        XCTAssertNotNil(controlFailure { _ = try ReplicaLayout(emptied: ["hda"]).rewrite("<pool/>") })
    }

    func testMirrorDestination() throws {
        let xml = ReplicaLayout.mirrorDestinationXML(socket: "/run/shadow-virt/a'b/nbd.sock", export: "vda")
        let root = try XCTUnwrap(XMLDocument(xmlString: xml).rootElement())
        XCTAssertEqual(text(root), "<disk device=disk type=network><driver discard=unmap name=qemu type=raw><source name=vda protocol=nbd><host socket=/run/shadow-virt/a'b/nbd.sock transport=unix>")
    }
}
