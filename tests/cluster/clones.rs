//! Two routers with one key, as after copying a disk: the first is not harmed, both know, and it can be mended.

use crate::peer::Settings;
use crate::world::World;

#[test]
fn a_clone_with_neighbours_of_its_own_steps_back_and_the_first_stays_known() {
    let mut world = World::new(31);
    world.net.weather.delay_ms = 20;
    for n in 0..3 {
        let mut settings = Settings::new(n);
        settings.discovery = false;
        world.add(if n == 0 { settings } else { settings.to(n - 1) });
    }
    world.launch(0);
    world.settle();
    world.run_secs(5);
    let mut settings = Settings::new(3).to(2);
    settings.discovery = false;
    let clone = world.add_clone(0, settings);
    let first = world.peers[0].name;
    let mut away = 0;
    for _ in 0..600 {
        world.run_ms(500);
        let neighbour = &world.peers[1].up().router;
        assert!(neighbour.neighbours().contains(&first), "the first is kept");
        let far = &world.peers[2].up();
        let via = far.router.routes().unicast.get(&first).copied();
        away += u32::from(via != Some(world.peers[1].name));
        let names = far.names.records().filter(|record| record.origin == first);
        assert_eq!(names.count(), 1, "its name is never withdrawn");
    }
    // The clone comes back once a minute, to see whether it is the only one.
    assert!(
        away < 60,
        "half a second long, {away} times, another way was taken"
    );
    assert!(world.model.clashes.contains(&0) && world.model.clashes.contains(&clone));

    world.reset_identity(clone);
    world.start(clone);
    world.run_secs(30);
    let mended = world.peers[clone].name;
    assert!(
        world.peers[0]
            .up()
            .router
            .routes()
            .unicast
            .contains_key(&mended)
    );
    assert!(world.peers[2].up().router.neighbours().contains(&mended));
}

#[test]
fn a_clone_beside_the_first_is_refused_and_takes_nobody_down() {
    let mut world = World::of(32, 3);
    world.connect(1, 0);
    world.connect(2, 0);
    world.launch(1);
    world.settle();
    world.run_secs(5);
    let clone = world.add_clone(1, Settings::new(3).to(0).to(1));
    let first = world.peers[1].name;
    for _ in 0..240 {
        world.run_ms(500);
        for n in [0, 2] {
            let up = world.peers[n].up();
            assert!(up.router.neighbours().contains(&first), "n{n}");
            let names = up.names.records().filter(|record| record.origin == first);
            assert_eq!(names.count(), 1, "n{n}");
        }
        assert_eq!(world.peers[1].up().router.neighbours().len(), 2);
    }
    assert!(world.peers[clone].up().router.neighbours().is_empty());
    for n in [1, clone] {
        let said = &world.model.refusals[&n];
        assert!(
            said.iter().any(|text| text.contains("same key")),
            "{said:?}"
        );
    }
}
